// Package storetest is the contract of the store as tests: each engine runs the
// same suite on the real technology. It refuses to know which engine it tests.
package storetest

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/disk"
	"github.com/tarn-storage/tarn/internal/journal"
	"github.com/tarn-storage/tarn/internal/store"
)

// Place makes an empty database and returns what opens it, again and again.
type Place func(t *testing.T) (open func(t *testing.T) *store.Store)

// Run executes the suite on databases that place makes.
func Run(t *testing.T, place Place) {
	tests := []struct {
		name string
		run  func(*testing.T, Place)
	}{
		{"records", testRecords},
		{"constraints", testConstraints},
		{"failed statement leaves the transaction usable", testFailedStatement},
		{"queries", testQueries},
		{"paging", testPaging},
		{"references", testDangling},
		{"sums", testSums},
		{"sums of a random history", testSumsAgree},
		{"sums of transactions committed together", testSumsOfBatch},
		{"operation rows", testOperationRows},
		{"resources", testResources},
		{"fences", testFences},
		{"events", testEvents},
		{"event pruning", testEventPruning},
		{"trimmed events", testTrimmedEvents},
		{"pruned operations", testPrunedOperations},
		{"generations", testGenerations},
		{"group commit", testGroupCommit},
		{"isolation within a batch", testBatchIsolation},
		{"transaction rules", testTransactionRules},
		{"cancellation", testCancellation},
		{"panic and exit", testPanic},
		{"swallowed error", testSwallowed},
		{"snapshot reads", testSnapshot},
		{"crash around commit", testCrash},
		{"I/O error", testIOError},
		{"full disk", testFull},
		{"closing", testClose},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) { test.run(t, place) })
	}
}

// fresh returns an empty open store that is closed with the test.
func fresh(t *testing.T, place Place) *store.Store {
	t.Helper()
	return opened(t, place(t))
}

func opened(t *testing.T, open func(*testing.T) *store.Store) *store.Store {
	t.Helper()
	s := open(t)
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return s
}

// seeded returns a store that holds the records of seed.
func seeded(t *testing.T, place Place) *store.Store {
	t.Helper()
	s := fresh(t, place)
	update(t, s, seed)
	return s
}

func update(t *testing.T, s *store.Store, fn func(context.Context, *store.Tx) error) {
	t.Helper()
	if err := s.Update(t.Context(), fn); err != nil {
		t.Fatalf("update: %v", err)
	}
}

func view(t *testing.T, s *store.Store, fn func(context.Context, *store.Tx) error) {
	t.Helper()
	if err := s.View(t.Context(), fn); err != nil {
		t.Fatalf("view: %v", err)
	}
}

// countHosts returns how many hosts a new transaction sees.
func countHosts(t *testing.T, s *store.Store) (n int) {
	t.Helper()
	view(t, s, func(ctx context.Context, tx *store.Tx) (err error) {
		n, err = tx.Hosts.Count(ctx)
		return err
	})
	return n
}

func wantKind(t *testing.T, what string, err error, kind errs.Kind) {
	t.Helper()
	if !errors.Is(err, kind) {
		t.Errorf("%s: got %v (%s), want %s", what, err, errs.KindOf(err), kind)
	}
}

// epoch is the time of every record; the store keeps microseconds.
var epoch = time.Date(2026, 3, 1, 12, 30, 15, 123456000, time.UTC)

// The new... functions return complete records whose unique fields derive from
// the id; they refer to the records of seed.

func newHost(id string) disk.Host {
	return disk.Host{ID: disk.HostID(id), Name: "host " + id, BootID: "boot " + id, CreatedAt: epoch, UpdatedAt: epoch}
}

func newDomain(id string) disk.Domain {
	return disk.Domain{ID: disk.DomainID(id), Identity: "fs:" + id, Overcommit: 1500,
		Reserve: disk.Reserve{Permille: 50, Bytes: 7}, CreatedAt: epoch, UpdatedAt: epoch}
}

func newPool(id string) disk.Pool {
	return disk.Pool{ID: disk.PoolID(id), Name: "pool " + id, Driver: "dir", HostID: "h", State: disk.PoolActive,
		Path: "/srv/" + id, Source: disk.PoolSource{Device: "/dev/" + id, FileSystem: "xfs"}, Owner: disk.Owner{UID: 64055, GID: -1}, Identity: "dir:" + id, DomainID: "d",
		DiskFormat: disk.FormatAuto, ImageFormats: append(disk.Pool{}.ImageFormats, "raw", "iso"), CreatedAt: epoch, UpdatedAt: epoch}
}

func newImage(id string) disk.Image {
	return disk.Image{ID: disk.ImageID(id), Name: "image " + id, State: disk.ImageReady, Format: "qcow2",
		VirtualSize: 2 << 30, MinDisk: 1 << 30, SourceSHA256: "abc", Content: "b3-4m:" + id, Generation: 4,
		Proof:     &disk.Proof{Checksums: []string{"sha512:abc"}, Signature: &disk.Signature{Over: disk.OverChecksums, Scheme: "openpgp", KeyID: "1", Name: "n", Time: epoch}},
		Source:    &disk.ImageSource{URL: "https://example.org/" + id, Compression: "xz"},
		CreatedAt: epoch, UpdatedAt: epoch}
}

func newVolume(id string) disk.Volume {
	return disk.Volume{ID: disk.VolumeID(id), PoolID: "p", Name: "volume " + id, Kind: disk.KindDisk, State: disk.VolumeReady,
		Format: "qcow2", VirtualSize: 1 << 40, RequestedSize: 1<<40 - 1, ClusterSize: 65536,
		Committed: 1<<40 + 5, Writing: 11, Allocated: 196608, Adopted: true, BackendID: "inode 7", Generation: 3, CreatedBy: "o",
		Backing:   &disk.Backing{VolumeID: "b", Name: "base_b.raw", Format: "raw", Content: "b3-4m:b"},
		CreatedAt: epoch, UpdatedAt: epoch}
}

func newBase(id string) disk.Volume {
	return disk.Volume{ID: disk.VolumeID(id), PoolID: "p", Name: "base_" + id + ".raw", Kind: disk.KindBase,
		State: disk.VolumeReady, Format: "raw", VirtualSize: 4096, RequestedSize: 4096, Content: "b3-4m:" + id,
		ContentSize: 4000, Extents: 12, Pinned: true, Committed: 4096, Allocated: 4096, Generation: 1, CreatedBy: "o",
		CreatedAt: epoch, UpdatedAt: epoch}
}

func newInstance(id string) disk.Instance {
	return disk.Instance{ID: disk.InstanceID(id), Name: "instance " + id, Generation: 5, CreatedAt: epoch, UpdatedAt: epoch}
}

func newDisk(id, volume string) disk.Disk {
	return disk.Disk{ID: disk.DiskID(id), InstanceID: "n", Name: "data " + id, Role: disk.RoleData, Index: 1, Size: 1 << 40,
		VolumeID: disk.VolumeID(volume), Serial: "serial" + id, Bus: "virtio", Device: "vdb", BootIndex: 2, ReadOnly: true,
		Discard: "unmap", Cache: "none", Prealloc: "full",
		Source:     disk.Source{Kind: "image", ImageID: "i", Image: "image i", Content: "b3-4m:i", FS: "ext4", Label: "l"},
		DriverInfo: []byte(`{"v":1,  "x":"ü"}`), CreatedAt: epoch, UpdatedAt: epoch}
}

func newLease(volume string) disk.Lease {
	return disk.Lease{VolumeID: disk.VolumeID(volume), HostID: "h", BootID: "boot", Generation: 9, State: disk.LeaseHeld, CreatedAt: epoch}
}

func newOperation(id string) journal.Operation {
	return journal.Operation{ID: journal.ID(id), Kind: "disk.create", State: journal.Running,
		Subject: journal.Subject{Type: "disk", ID: "k", Name: "web/" + id}, Key: "key " + id, Request: []byte(`{"size": 1}`),
		Resources: []string{"disk/" + id, "pool/" + id},
		Steps:     []journal.Step{journal.NewStep("volume.create/v1", 7), {Kind: "x/v1", State: journal.StepDone, Cursor: []byte("1"), Output: []byte(`"o"`)}},
		Progress:  journal.Progress{Done: 1, Total: 2, Unit: "bytes", Rate: 3, ETASeconds: 4},
		Error:     &journal.Failure{Kind: errs.NoSpace, Message: "full"}, Cancel: true, Attempts: 2,
		Owner: "h", Fence: 4, CreatedAt: epoch, UpdatedAt: epoch}
}

// seed inserts one record of every kind: host h, domain d, pool p, image i,
// base b, volume v on it, instance n, disk k in v, a lease on v, and
// operation o.
func seed(ctx context.Context, tx *store.Tx) error {
	var rows *store.Store // the operation methods need no open store
	_, _, opErr := rows.InsertOperation(ctx, tx, newOperation("o"))
	return errors.Join(
		opErr,
		tx.Hosts.Insert(ctx, newHost("h")),
		tx.Domains.Insert(ctx, newDomain("d")),
		tx.Pools.Insert(ctx, newPool("p")),
		tx.Images.Insert(ctx, newImage("i")),
		tx.Volumes.Insert(ctx, newBase("b")),
		tx.Volumes.Insert(ctx, newVolume("v")),
		tx.Instances.Insert(ctx, newInstance("n")),
		tx.Disks.Insert(ctx, newDisk("k", "v")),
		tx.Leases.Insert(ctx, newLease("v")),
	)
}

// id returns the n-th id in ascending order.
func id(n int) string { return fmt.Sprintf("%06d", n) }
