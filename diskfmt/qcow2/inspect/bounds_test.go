package inspect_test

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/tarn-storage/tarn/diskfmt/internal/doortest"
	"github.com/tarn-storage/tarn/diskfmt/qcow2/inspect"
)

// The largest L1 table that is let in, each entry of which has an L2 table of
// its own, must not take more memory than promised.
func TestMemoryIsBounded(t *testing.T) {
	const entries, cluster = 1 << 20, 512
	head := bytes.Clone(sound(t, false)[:104+16])
	be.PutUint32(head[20:], 9)
	be.PutUint64(head[24:], entries*64*cluster)
	const refTable = 8 << 20
	be.PutUint64(head[48:], refTable)
	be.PutUint32(head[56:], 1<<14) // 8 MiB: the most
	const table = refTable + 8<<20
	be.PutUint32(head[36:], entries)
	be.PutUint64(head[40:], table)
	l1 := make([]byte, entries*8)
	const tables = table + entries*8
	for i := range uint64(entries) {
		be.PutUint64(l1[i*8:], copied|(tables+i*cluster))
	}
	f := doortest.Sparse{Size: tables + entries*cluster, Pieces: map[int64][]byte{0: head, table: l1}}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	_, err := inspect.Inspect(t.Context(), f, f.Size, inspect.Limits{})
	runtime.ReadMemStats(&after)
	if class(err) != "CORRUPT" {
		t.Errorf("an image without refcounts: got %v, want class CORRUPT", err)
	}
	if got, most := after.TotalAlloc-before.TotalAlloc, uint64(64<<20); got > most {
		t.Errorf("Inspect allocated %d bytes, want at most %d", got, most)
	}
}

// What is walked once for each window of a file counts against one bound, so
// that the holes of a file do not multiply the work on its tables.
func TestVisitsAreBoundedInAll(t *testing.T) {
	b := sound(t, false)
	const lim = 50_000 // three windows' worth of a table of L1, L2 and refcounts
	for size, want := range map[int64]string{int64(len(b)): "", 256 << 30: "", 4 << 40: "LIMIT", 1<<50 + 1: "LIMIT"} {
		_, err := inspect.Inspect(t.Context(), doortest.Sparse{Size: size, Pieces: map[int64][]byte{0: b}}, size, inspect.Limits{Visits: lim})
		if class(err) != want {
			t.Errorf("a file of %d bytes: %v, want class %q", size, err, want)
		}
	}
	if _, err := inspect.Inspect(t.Context(), doortest.Sparse{Size: 4 << 40, Pieces: map[int64][]byte{0: b}}, 4<<40, inspect.Limits{}); err != nil {
		t.Errorf("by default a file of 4 TiB: %v", err)
	}
}

// sharing is an image of 512-byte clusters with so many snapshots that share the
// active disk's one L2 table, and with it its data. The L2 table's refcount may
// be off by one.
func sharing(t *testing.T, snapshots int, off int) []byte {
	t.Helper()
	const cluster, entry = 512, 64
	table := (snapshots*entry + cluster - 1) / cluster
	blocks := (table+snapshots+5)/255 + 1 // 256 refcounts in each, and the blocks are counted as well
	refs, l1 := 2, 2+blocks
	l2, data, snaps := l1+1, l1+2, l1+3
	end := snaps + table + snapshots
	b := make([]byte, end*cluster)
	copy(b, sound(t, false)[:104+16])
	be.PutUint32(b[20:], 9)
	be.PutUint64(b[24:], 64*cluster)
	be.PutUint32(b[36:], 1)
	be.PutUint64(b[40:], uint64(l1*cluster))
	be.PutUint64(b[48:], cluster)
	be.PutUint32(b[56:], 1)
	be.PutUint32(b[60:], uint32(snapshots))
	be.PutUint64(b[64:], uint64(snaps*cluster))
	for i := range blocks {
		be.PutUint64(b[cluster+8*i:], uint64((refs+i)*cluster))
	}
	for i := range end {
		be.PutUint16(b[refs*cluster+2*i:], 1)
	}
	be.PutUint16(b[refs*cluster+2*l2:], uint16(snapshots+1+off))
	be.PutUint16(b[refs*cluster+2*data:], uint16(snapshots+1))
	be.PutUint64(b[l1*cluster:], uint64(l2*cluster))
	be.PutUint64(b[l2*cluster:], uint64(data*cluster))
	for i := range snapshots {
		own := (snaps + table + i) * cluster
		be.PutUint64(b[own:], uint64(l2*cluster))
		e := b[snaps*cluster+entry*i:]
		be.PutUint64(e, uint64(own))
		be.PutUint32(e[8:], 1)
		be.PutUint16(e[12:], 8)
		be.PutUint32(e[36:], 16) // more of the entry: the disk's size is in it
		be.PutUint64(e[48:], 64*cluster)
		copy(e[56:], fmt.Sprintf("%08d", i))
	}
	return b
}

// TestManyReferences: a cluster may have as many references as its refcount can
// say, and they are counted.
func TestManyReferences(t *testing.T) {
	for _, row := range []struct {
		snapshots, off int
		want           string
	}{{10, 0, ""}, {5000, 0, ""}, {10, -1, "CORRUPT"}, {5000, -1, "CORRUPT"}} {
		b := sharing(t, row.snapshots, row.off)
		rep, err := inspect.Inspect(t.Context(), bytes.NewReader(b), int64(len(b)), inspect.Limits{})
		if class(err) != row.want || err == nil && (rep.Snapshots != row.snapshots || rep.LeakedClusters != 0) {
			t.Errorf("%d snapshots, a refcount off by %d: got %+v, %v, want class %q", row.snapshots, row.off, rep, err, row.want)
		}
		if _, err := exec.LookPath("qemu-img"); err != nil {
			continue
		}
		path := filepath.Join(t.TempDir(), "image")
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.Command("qemu-img", "check", "-f", "qcow2", path).CombinedOutput(); (err == nil) != (row.want == "") {
			t.Errorf("%d snapshots, a refcount off by %d: qemu-img check: %v\n%s", row.snapshots, row.off, err, out)
		}
	}
}
