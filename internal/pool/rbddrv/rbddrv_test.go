package rbddrv_test

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/tarn-storage/tarn/internal/disk"
	"github.com/tarn-storage/tarn/internal/pool/driver"
	"github.com/tarn-storage/tarn/internal/pool/drivertest"
	"github.com/tarn-storage/tarn/internal/pool/metamorph"
	"github.com/tarn-storage/tarn/internal/pool/rbddrv"
	"github.com/tarn-storage/tarn/test/system/ceph"
)

var effects = map[string]int{
	"Prepare": 4, "Remove": 2, "Create": 1, "Create preallocated": 2, "Clone": 3, "Publish": 2, "Publish immutable": 3, "Resize": 1,
	"Snapshot": 1, "DeleteSnapshot": 1, "Delete": 1, "Delete staged": 1, "SetAside": 1, "PutSidecar": 1, "PutSidecar of the marker": 1, "Disown": 1, "Adopt": 1, "Adopt immutable": 2,
}

// place is an empty namespace of the cluster.
func place(t *testing.T) driver.Config { return placeIn(t, ceph.Start(t)) }

func placeIn(t *testing.T, c *ceph.Cluster) driver.Config {
	return driver.Config{ID: disk.PoolID(drivertest.NewID()), Source: disk.PoolSource{CephPool: c.Namespace(t), CephConf: c.Conf}}
}

func harness(t *testing.T) drivertest.Harness {
	c := ceph.Start(t)
	return drivertest.Harness{
		Type:  rbddrv.Type,
		Place: place,
		Foreign: func(t *testing.T, at driver.Config, name string) {
			c.Run(t, "rbd", "create", "--size", "1M", at.Source.CephPool+"/"+name)
		},
		Vanish: func(t *testing.T, at driver.Config) func() {
			c.Run(t, "ceph", "osd", "pool", "rename", c.Pool, c.Pool+"away")
			return func() { c.Run(t, "ceph", "osd", "pool", "rename", c.Pool+"away", c.Pool) }
		},
		Hold:    hold,
		Residue: residue,
		Slow:    true,
		Grain:   4 << 20,
		Effects: effects,
	}
}

var aside = regexp.MustCompile(`^(\.tarn\.a\.)[0-9a-f]+$`)

// residue lists images and snapshots with their sizes. What is set aside has its
// image's id in its name, which is none that can be foreseen.
func residue(t *testing.T, at driver.Config) (all []string) {
	c := ceph.Start(t)
	var rows []struct {
		Image, Snapshot string
		Size            int64
	}
	if err := json.Unmarshal([]byte(c.Run(t, "rbd", "ls", "--long", "--format", "json", at.Source.CephPool)), &rows); err != nil {
		t.Fatal(err)
	}
	for _, r := range rows {
		all = append(all, fmt.Sprintf("%s@%s %d", aside.ReplaceAllString(r.Image, "$1"), r.Snapshot, r.Size))
	}
	slices.Sort(all)
	return all
}

// hold has a daemon open the volume for writing, as a guest's QEMU does.
func hold(t *testing.T, at driver.Config, r driver.Ref) func() {
	pool, namespace, _ := strings.Cut(at.Source.CephPool, "/")
	node, err := json.Marshal(map[string]any{"driver": "rbd", "node-name": "n", "pool": pool, "namespace": namespace, "image": r.Name, "conf": at.Source.CephConf})
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "qemu-storage-daemon", "--blockdev", string(node))
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	c := ceph.Start(t)
	watched := func() bool {
		return strings.Contains(c.Run(t, "rbd", "status", "--format", "json", at.Source.CephPool+"/"+r.Name), "address")
	}
	for deadline := time.Now().Add(time.Minute); !watched(); {
		if time.Now().After(deadline) {
			t.Fatal("the daemon does not open the volume")
		}
	}
	return func() {
		_ = cmd.Process.Signal(syscall.SIGTERM) // a guest that shuts down
		_ = cmd.Wait()
	}
}

// TestContract samples crashes and failures, of which each takes seconds; with
// TARN_SLOW=1 it has them all.
func TestContract(t *testing.T) {
	drivertest.Run(t, harness(t))
}

// TestContractOfMany runs what a sample leaves out and only the cluster can show:
// what happens at once. The rest is for TARN_SLOW=1.
func TestContractOfMany(t *testing.T) {
	if os.Getenv("TARN_SLOW") != "" {
		t.Skip("TestContract runs all of it")
	}
	h := harness(t)
	h.Slow = false
	drivertest.RunParts(t, h, "Concurrent", "Opens")
}

// TestMetamorphic plays what calls of a tenth of a second leave time for;
// TARN_SLOW=1 plays thousands.
func TestMetamorphic(t *testing.T) {
	metamorph.RunBeside(t, rbddrv.Type, place, 200, 2)
}
