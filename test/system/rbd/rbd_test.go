// Package rbd_test runs the shipped binaries on a Ceph cluster of one node.
package rbd_test

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/tarn-storage/tarn/api"
	"github.com/tarn-storage/tarn/client"
	"github.com/tarn-storage/tarn/test/system/ceph"
	"github.com/tarn-storage/tarn/test/system/tarntest"
)

var moving = regexp.MustCompile(`"(capacity|reserved|foreign|available|allocated|allocated_size|foreign_at|free|data_percent|metadata_percent|time_to_full_seconds)": [^,\n]+,?\n *`)

func shown(d *tarntest.Daemon) (all string) {
	for _, noun := range []string{"pool", "volume", "instance", "disk"} {
		all += d.Must(noun, "list", "-o", "json").Stdout
	}
	return moving.ReplaceAllString(all, "")
}

// guestWrites has QEMU's own block layer, with the arguments that tarn prints
// for a hypervisor, fill the beginning of a disk with fives.
func guestWrites(t *testing.T, args []string, length string) {
	t.Helper()
	io := []string{}
	top := ""
	for i := 0; i+1 < len(args); i += 2 {
		switch args[i] {
		case "-object":
			io = append(io, "--object", args[i+1])
		case "-blockdev":
			io = append(io, "--blockdev", args[i+1])
			var n map[string]any
			if err := json.Unmarshal([]byte(args[i+1]), &n); err != nil {
				t.Fatal(err)
			}
			top = n["node-name"].(string)
		}
	}
	socket := filepath.Join(t.TempDir(), "nbd")
	io = append(io, "--nbd-server", "addr.type=unix,addr.path="+socket, "--export", "type=nbd,id=e,name=e,writable=on,node-name="+top)
	daemon := exec.CommandContext(t.Context(), "qemu-storage-daemon", io...)
	daemon.Stderr = os.Stderr
	if err := daemon.Start(); err != nil {
		t.Fatal(err)
	}
	for {
		if _, err := os.Stat(socket); err == nil {
			break
		}
		if daemon.Process.Signal(syscall.Signal(0)) != nil {
			t.Fatal("qemu-storage-daemon has ended")
		}
	}
	out, err := exec.CommandContext(t.Context(), "qemu-io", "-f", "raw", "-c", "write -P 0x35 0 "+length, "-c", "flush", "nbd+unix:///e?socket="+socket).CombinedOutput()
	if err != nil || strings.Contains(string(out), "failed") {
		t.Errorf("qemu-io: %v\n%s", err, out)
	}
	if err := daemon.Process.Signal(os.Interrupt); err != nil {
		t.Error(err)
	}
	if err := daemon.Wait(); err != nil {
		t.Errorf("qemu-storage-daemon: %v", err)
	}
}

// checkXML has libvirt's schema judge a <disk>, which must contain want.
func checkXML(t *testing.T, disk, want string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "domain.xml")
	domain := "<domain type='qemu'><name>x</name><memory>65536</memory><os><type>hvm</type></os><devices>" + disk + "</devices></domain>"
	if err := os.WriteFile(path, []byte(domain), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.CommandContext(t.Context(), "virt-xml-validate", path, "domain").CombinedOutput(); err != nil || !strings.Contains(disk, want) {
		t.Errorf("for libvirt the disk is %s: %v\n%s", disk, err, out)
	}
}

func TestShippedBinaries(t *testing.T) {
	cluster := ceph.Start(t)
	at := cluster.Namespace(t)
	key := cluster.Key(t, "shipped")
	source := []string{"--driver", "rbd", "--rbd-pool", at, "--ceph-conf", cluster.Conf, "--rbd-user", "shipped", "--rbd-secret-file", key}
	images := func() string { return cluster.Run(t, "rbd", "ls", "--long", at) }
	d := tarntest.Start(t, filepath.Join(t.TempDir(), "state"))
	d.Want(8, "pool", "create", "none", "--driver", "rbd", "--rbd-pool", "missing", "--ceph-conf", cluster.Conf)
	d.Must(append([]string{"pool", "create", "ceph"}, source...)...)
	d.Must("instance", "create", "web1", "--data", "8M,pool=ceph")
	const ref = "web1/data0"
	a := tarntest.Get[api.Attachment](d, "disk", "attach", ref, "--as", "qemu")
	guestWrites(t, a.QEMU, "3M")
	d.Must("disk", "detach", ref)
	d.Must("disk", "resize", ref, "16M")
	want := strings.Repeat("5", 3<<20) + strings.Repeat("\x00", 13<<20)
	check := func(when string) {
		t.Helper()
		if got := d.Must("disk", "export", ref, "-", "--format", "raw").Stdout; got != want {
			t.Errorf("%s: the disk has %d bytes and does not read as the guest wrote it", when, len(got))
		}
	}
	check("after growing")
	checkXML(t, d.Must("disk", "show", ref, "--as", "libvirt").Stdout, `protocol="rbd" name="`+at+"/")
	was := shown(d)
	d.Restart()
	d.Kill()
	d.Start()
	if got := shown(d); got != was {
		t.Errorf("after a restart:\n%s\nbefore:\n%s", got, was)
	}
	d.LoseDatabase()
	d.Must(append([]string{"pool", "import"}, source...)...)
	if got := shown(d); got != was {
		t.Errorf("after the loss of the database:\n%s\nbefore:\n%s", got, was)
	}
	check("after the loss of the database")
	d.AssertHealthy()
	d.Must("instance", "delete", "web1", "--yes")
	d.Must("pool", "delete", "ceph", "--yes")
	if got := images(); got != "" {
		t.Errorf("the pool left\n%s", got)
	}
}

// TestStoppedCluster stops all daemons of the cluster: that keeps nobody waiting
// but who works on its pool, and what failed there is undone when they go on.
func TestStoppedCluster(t *testing.T) {
	cluster := ceph.Own(t)
	d := tarntest.Start(t, filepath.Join(t.TempDir(), "state"))
	d.Must("pool", "create", "ceph", "--driver", "rbd", "--rbd-pool", cluster.Namespace(t), "--ceph-conf", cluster.Conf)
	d.Must("pool", "create", "other", "--driver", "dir", "--path", filepath.Join(t.TempDir(), "other"), "--reserve", "0%")
	d.Must("instance", "create", "web1", "--data", "8M,pool=ceph")
	pool := func() api.Pool { return tarntest.Get[api.Pool](d, "pool", "show", "ceph") }
	well := pool()
	if well.State != "active" || well.Capacity == 0 || well.Free == 0 {
		t.Fatalf("the pool is %+v", well)
	}
	ctx := t.Context()
	c := client.New(client.Search{Socket: d.Socket})
	defer c.Close()
	soon := func(what string, do func() error) {
		t.Helper()
		began := time.Now()
		if err := do(); err != nil {
			t.Errorf("%s: %v", what, err)
		}
		if took := time.Since(began); took > time.Second {
			t.Errorf("%s took %v while the cluster is stopped", what, took)
		}
	}
	thaw := cluster.FreezeAll(t)
	for range 2 {
		soon("the list of pools", func() error {
			l, err := c.Pools(ctx, api.Page{})
			for _, p := range l.Items {
				if want := map[bool]string{true: "degraded", false: "active"}[p.Name == "ceph"]; p.State != want {
					t.Errorf("pool %s is %s, %q; want %s", p.Name, p.State, p.Reason, want)
				}
				if p.Name == "ceph" && p.Capacity != well.Capacity {
					t.Errorf("the pool's capacity is %d, want the last known %d", p.Capacity, well.Capacity)
				}
			}
			return err
		})
	}
	soon("a disk", func() error { _, err := c.Disk(ctx, "web1/data0"); return err })
	soon("an instance in another pool", func() error {
		out, err := c.InstanceCreate(ctx, api.Options{Wait: time.Minute}, api.InstanceCreate{Name: "web2", Disks: []api.DiskSpec{{Role: "data", Size: 1 << 20, Pool: "other"}}})
		if err == nil && out.Operation.State != "done" {
			err = fmt.Errorf("it is %s: %v", out.Operation.State, out.Operation.Error)
		}
		return err
	})
	soon("the pool", func() error { _, err := c.Pool(ctx, "ceph"); return err })
	d.Want(8, "disk", "create", "web1", "--data", "8M,pool=ceph")
	thaw()
	if os.Getenv("TARN_SLOW") == "" {
		// A stopped OSD answers nobody for minutes at times, no other client either.
		t.Log("TARN_SLOW=1 waits for the cluster, too")
		return
	}
	cluster.Run(t, "rbd", "ls", cluster.Namespace(t))
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for began := time.Now(); pool().State != "active"; <-tick.C {
		if time.Since(began) > 2*time.Minute {
			t.Fatalf("two minutes after the cluster answered again the pool is %+v", pool())
		}
	}
	d.Must("disk", "create", "web1", "--data", "8M,pool=ceph")
	d.AssertSettled()
	d.AssertHealthy()
	d.Must("instance", "delete", "web1", "--yes")
	d.Must("instance", "delete", "web2", "--yes")
	d.Must("pool", "delete", "ceph", "--yes")
}
