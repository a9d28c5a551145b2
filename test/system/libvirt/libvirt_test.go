// Package libvirt_test gives tarn's disks to a real libvirtd, by the commands
// that an administrator types, and holds that libvirt takes every element as it
// is printed and leaves owners and bases alone.
package libvirt_test

import (
	"encoding/xml"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/tarn-storage/tarn/api"
	"github.com/tarn-storage/tarn/test/system/guest"
	"github.com/tarn-storage/tarn/test/system/tarntest"
)

// TestLibvirt starts both daemons once, because libvirtd takes its time, with a
// pool whose disks belong to libvirt's QEMU.
func TestLibvirt(t *testing.T) {
	d := tarntest.Start(t, filepath.Join(t.TempDir(), "state"))
	l := startLibvirtd(t, d)
	dir := t.TempDir()
	guest.LetPass(t, dir)
	d.Must("pool", "create", "main", "--driver", "dir", "--path", filepath.Join(dir, "pool"),
		"--owner", guest.QEMUUser(t).Owner, "--disk-format", "qcow2", "--overcommit", "100")
	image := tarntest.WriteFile(t, "image", append(tarntest.Pattern(7, 1<<20), make([]byte, 3<<20)...))
	d.Must("image", "import", "img", image, "--format", "raw")
	t.Run("an administrator attaches", func(t *testing.T) { testAdministrator(t, d, l.of(t)) })
	t.Run("every disk is taken", func(t *testing.T) { testEveryDisk(t, d, l.of(t)) })
}

// domainDisk is what libvirt says of one disk of a domain.
type domainDisk struct {
	Device string `xml:"device,attr"`
	Driver struct {
		Type string `xml:"type,attr"`
	} `xml:"driver"`
	Source struct {
		File string `xml:"file,attr"`
	} `xml:"source"`
	Target struct {
		Dev string `xml:"dev,attr"`
		Bus string `xml:"bus,attr"`
	} `xml:"target"`
	Serial string `xml:"serial"`
}

// dumped returns the disks of a domain by serial.
func (l libvirtd) dumped(command string) map[string]domainDisk {
	l.t.Helper()
	var domain struct {
		Disks []domainDisk `xml:"devices>disk"`
	}
	if err := xml.Unmarshal([]byte(l.shell("%s", command)), &domain); err != nil {
		l.t.Fatal(err)
	}
	out := map[string]domainDisk{}
	for _, d := range domain.Disks {
		out[d.Serial] = d
	}
	return out
}

// has fails unless the domain has the disk as tarn records it, at target.
func (l libvirtd) has(command string, d api.Disk, target string) {
	l.t.Helper()
	got, ok := l.dumped(command)[d.Serial]
	if !ok {
		l.t.Errorf("%s: no disk with serial %s", command, d.Serial)
		return
	}
	if got.Target.Dev != target || d.Device != target || got.Source.File != d.Path || got.Driver.Type != d.Format {
		l.t.Errorf("%s: got %+v, want device %s of %+v", command, got, target, d)
	}
}

// testAdministrator types what the manual shows for a domain that is
// there already: first while it is off, then while it runs.
func testAdministrator(t *testing.T, d *tarntest.Daemon, l libvirtd) {
	disk := func(ref string) api.Disk { t.Helper(); return tarntest.Get[api.Disk](d, "disk", "show", ref) }
	l.define("web1", "")

	l.shell("tarn instance create web1 --uuid $(virsh domuuid web1)")
	if got, want := tarntest.Get[api.Instance](d, "instance", "show", "web1").ID, l.shell("virsh domuuid web1"); got != want {
		t.Errorf("instance: id %s, want the domain's, %s", got, want)
	}
	l.shell("tarn disk create web1 --data 50G")
	l.shell("tarn disk attach web1/data0 --as libvirt --target vdb | virsh attach-device web1 /dev/stdin --persistent")
	l.has("virsh dumpxml web1", disk("web1/data0"), "vdb")
	if size := l.shell("virsh start web1 >&2; virsh domblkinfo web1 vdb | sed -n 's/^Capacity: *//p'"); size != fmt.Sprint(50<<30) {
		t.Errorf("data0 in the running domain: %s bytes, want %d", size, 50<<30)
	}

	l.shell("tarn disk create web1 --data 1G")
	l.shell("tarn disk attach web1/data1 --as libvirt --target vdf | virsh attach-device web1 /dev/stdin --persistent")
	l.has("virsh dumpxml web1", disk("web1/data1"), "vdf")
	l.has("virsh dumpxml web1 --inactive", disk("web1/data1"), "vdf")

	for _, args := range [][]string{{"disk", "detach", "web1/data1"}, {"disk", "resize", "web1/data0", "+1G"}, {"instance", "delete", "web1", "--yes"}} {
		d.Want(7, args...)
	}
	l.shell("virsh destroy web1")
	d.Must("instance", "detach", "web1")
	if again := d.Must("disk", "attach", "web1/data0", "--as", "libvirt").Stdout; !strings.Contains(again, `dev="vdb"`) {
		t.Errorf("attach after a detach: got %s, want the device it had, vdb", again)
	}
	d.AssertHealthy()
}

// owner is whom a file belongs to and who may do what with it.
func owner(t *testing.T, path string) string {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%d:%d %o", st.Uid, st.Gid, st.Mode&0o7777)
}

// testEveryDisk defines and starts a domain whose disks have every
// role, bus and form of chain, exactly as tarn prints them.
func testEveryDisk(t *testing.T, d *tarntest.Daemon, l libvirtd) {
	data := tarntest.WriteFile(t, "user-data", []byte("#cloud-config\n"))
	l.shell(`tarn instance create every --root img:8M --ephemeral 128M,fs=ext4,bus=scsi --swap 16M,bus=sata \
		--data 8M,bus=virtio --data 8M,bus=scsi,discard=ignore,cache=writeback --data 8M,bus=sata,disk-format=raw,cache=writethrough \
		--data 8M,cache=directsync,prealloc=full,disk-format=raw --data 8M,cache=unsafe --cdrom img --cdrom img,bus=scsi --user-data %s`, data)
	disks := tarntest.Get[api.List[api.Disk]](d, "disk", "list", "--instance", "every").Items
	paths := []string{}
	for _, v := range tarntest.Get[api.List[api.Volume]](d, "volume", "list").Items {
		paths = append(paths, v.Path)
	}
	before := map[string]string{}
	for _, p := range paths {
		before[p] = owner(t, p)
	}
	if disks[0].Backing == nil {
		t.Fatalf("root disk: got %+v, want an overlay", disks[0])
	}

	l.define("every", l.shell("tarn instance attach every --as libvirt"))
	l.shell("virsh start every")
	for _, disk := range disks {
		l.has("virsh dumpxml every", disk, disk.Device)
	}
	unchanged := func(when string) {
		t.Helper()
		for _, p := range paths {
			if now := owner(t, p); now != before[p] {
				t.Errorf("%s: %s belongs to %s, was %s", when, p, now, before[p])
			}
		}
	}
	unchanged("while the domain runs")
	d.Want(7, "instance", "detach", "every")
	l.shell("virsh destroy every")
	unchanged("after the domain")
	d.Must("instance", "detach", "every")
	d.AssertHealthy()
	d.Must("instance", "delete", "every", "--yes")
}
