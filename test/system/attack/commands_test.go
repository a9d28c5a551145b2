package attack_test

import (
	"strings"

	"github.com/spf13/cobra"

	"github.com/tarn-storage/tarn/internal/cli"
)

// command is one command line that is run against attacked disks. In args DISK
// is a disk's reference, VICTIM its instance, VOLUME its volume, FILE a file with
// what it holds, OUT and NEW names that are free, SOURCE the pool's storage, OTHER
// a directory, SPARE a disk to delete, OP an operation.
type command struct {
	path    string // of the command in the tree
	args    string // the whole command line; "" where none can touch a disk
	why     string // why none can
	status  int    // of a disk whose bytes are the guest's affair: raw
	corrupt int    // of an overlay whose metadata the guest has damaged
	before  func(w *world)
	gone    bool // the disks are gone behind it
}

// commands are run in this order. Every command of the tree must be here.
var commands = []command{
	{path: "completion", why: "prints a script; it does not connect"},
	{path: "version", args: "version"},

	{path: "pool list", args: "pool list -o json"},
	{path: "pool show", args: "pool show main"},
	{path: "pool create", args: "pool create other --driver dir --path OTHER"},
	{path: "pool set", args: "pool set main --overcommit 1.5 --reserve 1%"},
	{path: "pool rename", args: "pool rename main renamed"},
	{path: "pool rename", args: "pool rename renamed main"},
	{path: "pool stop", args: "pool stop main"},
	{path: "pool start", args: "pool start main"},
	{path: "pool refresh", args: "pool refresh main"},
	{path: "pool capabilities", args: "pool capabilities"},
	{path: "pool build", args: "pool build main", status: 2, corrupt: 2},
	{path: "pool import", args: "pool import SOURCE", status: 4, corrupt: 4},

	{path: "instance list", args: "instance list"},
	{path: "instance show", args: "instance show VICTIM"},
	{path: "instance show", args: "instance show VICTIM -o json"},
	{path: "instance show", args: "instance show VICTIM --as libvirt", corrupt: opened},
	{path: "instance show", args: "instance show VICTIM --as qemu", corrupt: opened},
	{path: "instance attach", args: "instance attach VICTIM --as libvirt", corrupt: opened},
	{path: "instance attach", args: started, corrupt: opened},
	{path: "disk resize", args: "disk resize DISK 8M", status: 7, corrupt: opened},
	{path: "disk export", args: "disk export DISK OUT --format raw", status: 7, corrupt: opened},
	{path: "doctor", args: "doctor", corrupt: anyStatus},
	{path: "instance detach", args: "instance detach VICTIM"},
	{path: "instance rename", args: "instance rename victim again"},
	{path: "instance rename", args: "instance rename again victim"},
	{path: "instance create", args: "instance create twin --pool main --root img:3M"},

	{path: "disk list", args: "disk list"},
	{path: "disk list", args: "disk list --instance VICTIM -o json"},
	{path: "disk show", args: "disk show DISK"},
	{path: "disk show", args: "disk show DISK -o json"},
	{path: "disk show", args: "disk show DISK --as libvirt", corrupt: opened},
	{path: "disk show", args: "disk show DISK --as qemu", corrupt: opened},
	{path: "disk attach", args: "disk attach DISK --as qemu", corrupt: opened},
	{path: "disk attach", args: "disk attach DISK --as libvirt", corrupt: opened},
	{path: "disk detach", args: "disk detach DISK --force --yes"},
	{path: "disk export", args: "disk export DISK OUT --format raw", corrupt: 10},
	{path: "disk export", args: "disk export DISK OUT --format qcow2", corrupt: 10},
	{path: "disk export", args: "disk export DISK - --format raw", corrupt: 10},
	{path: "disk export", args: "disk export DISK OUT --format qcow2 --compression zstd", corrupt: 10},
	{path: "disk export", args: "disk export DISK OUT --format vmdk", corrupt: 10},
	{path: "disk export", args: "disk export DISK OUT --format vhd", corrupt: 10},
	{path: "disk export", args: "disk export DISK OUT --format vhdx", corrupt: 10},
	{path: "disk export", args: "disk export DISK - --format vdi", corrupt: 10},
	{path: "disk resize", args: "disk resize DISK 1M --shrink", status: anyStatus, corrupt: anyStatus},
	{path: "disk resize", args: growing, corrupt: 10},
	{path: "disk export", args: "disk export DISK OUT --format qcow2", corrupt: 10},
	{path: "disk create", args: "disk create VICTIM --data 1M,pool=main"},

	{path: "image list", args: "image list"},
	{path: "image show", args: "image show img"},
	{path: "image inspect", args: "image inspect FILE --format raw", status: 5, corrupt: anyStatus},
	{path: "image inspect", args: "image inspect FILE --format qcow2", status: 5, corrupt: 5},
	{path: "image import", args: "image import NEW FILE --format raw --pool main", status: 5, corrupt: anyStatus},
	{path: "image import", args: "image import NEW FILE --format qcow2 --pool main", status: 5, corrupt: 5},
	{path: "image export", args: "image export img - --format raw"},
	{path: "image rename", args: "image rename img img2"},
	{path: "image rename", args: "image rename img2 img"},
	{path: "cache list", args: "cache list -o json"},
	{path: "cache add", args: "cache add img --pool other --pin"},
	{path: "cache unpin", args: "cache unpin img --pool other"},
	{path: "doctor", args: "doctor --scrub --repair -o json", corrupt: anyStatus},
	{path: "cache prune", args: "cache prune --yes"},
	{path: "volume list", args: "volume list --pool main"},
	{path: "volume list", args: "volume list --foreign"},
	{path: "volume show", args: "volume show VOLUME"},
	{path: "volume adopt", args: "volume adopt main VOLUME --format raw", status: 2, corrupt: 2}, // no object of a pool may be called so
	{path: "volume release", args: "volume release VOLUME", status: 4, corrupt: 4},
	{path: "operation list", args: "operation list -o json"},
	{path: "operation show", args: "operation show OP -o json"},
	{path: "operation wait", args: "operation wait OP"},
	{path: "operation cancel", args: "operation cancel OP", status: anyStatus, corrupt: anyStatus},
	{path: "events", args: "events -o json"},
	{path: "doctor", args: "doctor --pool main -o json", corrupt: anyStatus},
	{path: "doctor", args: "doctor -o json", corrupt: anyStatus},

	{path: "doctor", args: "doctor -o json", corrupt: anyStatus, before: func(w *world) { w.d.Restart() }},
	{path: "disk export", args: "disk export DISK OUT --format raw", corrupt: 10},
	{path: "instance show", args: "instance show VICTIM -o json", before: func(w *world) { w.d.Kill(); w.d.Start() }},

	{path: "pool import", args: "pool import SOURCE", before: func(w *world) { w.d.LoseDatabase() }},
	{path: "pool import", args: "pool import --driver dir --path OTHER"},
	{path: "doctor", args: "doctor -o json", corrupt: anyStatus},
	{path: "disk list", args: "disk list --instance VICTIM -o json"},
	{path: "volume show", args: "volume show VOLUME -o json"},
	{path: "instance attach", args: "instance attach VICTIM --as qemu", corrupt: opened},
	{path: "instance detach", args: "instance detach VICTIM --force --yes"},
	{path: "disk export", args: "disk export DISK OUT --format raw", corrupt: 10},
	{path: "doctor", args: "doctor --repair -o json", corrupt: anyStatus},

	{path: "image delete", args: "image delete img --yes"},
	{path: "cache prune", args: "cache prune --older-than 0s --yes"},
	{path: "pool delete", args: "pool delete main --keep-data --yes", before: func(w *world) { w.twinless() }},
	{path: "pool import", args: "pool import SOURCE"},
	{path: "disk delete", args: "disk delete SPARE --yes", before: func(w *world) { w.spare() }},
	{path: "instance delete", args: "instance delete VICTIM --yes", gone: true},
	{path: "pool delete", args: "pool delete main --yes", corrupt: anyStatus, gone: true},
}

// growing is the one command line that changes a disk's file.
const growing = "disk resize DISK +1M"

// opened is where a container is opened: a damage there is found, and what a raw
// disk gives is given where the damage is deeper.
const opened = -3

// started is the one command line whose arguments QEMU is started with.
const started = "instance attach VICTIM --as qemu -o json"

// anyStatus is where a refusal is as good as obedience.
const anyStatus = -2

// leaves returns every command of tarn that does something.
func leaves() []string {
	var out []string
	var walk func(c *cobra.Command)
	walk = func(c *cobra.Command) {
		for _, sub := range c.Commands() {
			walk(sub)
		}
		if !c.HasSubCommands() {
			out = append(out, strings.TrimPrefix(c.CommandPath(), "tarn "))
		}
	}
	walk(cli.Tree())
	return out
}
