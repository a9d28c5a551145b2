package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
)

// crowd is how many clients work at once in the rows that say so.
const crowd = 64

// diskSize is the size of every disk that is made, in bytes.
const diskSize = 4 << 30

// create measures the making of a root disk from a base that the pool has.
func (b *bench) create(ctx context.Context) error {
	src, err := b.small()
	if err != nil {
		return err
	}
	d, err := b.ready(ctx, src)
	if err != nil {
		return err
	}
	defer d.stop()
	peer, err := b.overlays(src)
	if err != nil {
		return err
	}
	const few, many = 40, 640
	qemu := func(n, clients int) work {
		return work{name: "qemu-img create -b BASE -F raw", n: n, do: func(ctx context.Context) error {
			return parallel(clients, n, func() error { return command(ctx, "qemu-img", peer(b.name())...) })
		}}
	}
	api := func(format string, n, clients int) work {
		return work{name: "tarn, Go client, disk_format " + format, n: n, pid: d.pid, do: func(ctx context.Context) error {
			return parallel(clients, n, func() error { return d.disk(ctx, b.name(), "i", format) })
		}}
	}
	cli := work{name: "tarn instance create", n: few, pid: d.pid, do: func(ctx context.Context) error {
		return parallel(1, few, func() error {
			return command(ctx, b.path("bin", "tarn"), "--socket", d.socket, "instance", "create", b.name(), "--root", fmt.Sprintf("i:%d,disk-format=qcow2", diskSize))
		})
	}}
	return errors.Join(
		b.compare(ctx, "root disk, one at a time", api("qcow2", few, 1), qemu(few, 1)),
		b.compare(ctx, "root disk, one at a time, as the pool likes it", api("auto", few, 1), qemu(few, 1)),
		b.compare(ctx, "root disk, the command line's process", cli, qemu(few, 1)),
		b.compare(ctx, fmt.Sprintf("root disk, %d clients", crowd), api("qcow2", many, crowd), qemu(many, crowd)),
		b.virsh(ctx, src, api("qcow2", few, 1)),
	)
}

// overlays returns the arguments of qemu-img that make an overlay of the given
// name beside a copy of the image at src.
func (b *bench) overlays(src string) (func(name string) []string, error) {
	dir, err := b.fresh("peer")
	base := filepath.Join(dir, "base.raw")
	if err == nil {
		err = os.Link(src, base)
	}
	return func(name string) []string {
		return []string{"create", "-q", "-f", "qcow2", "-b", base, "-F", "raw", filepath.Join(dir, name), strconv.Itoa(diskSize)}
	}, err
}

// virsh compares ours with a volume that libvirt makes over a base.
func (b *bench) virsh(ctx context.Context, src string, ours work) error {
	l, err := b.libvirt(ctx)
	if l == nil {
		return err
	}
	defer l.stop()
	pool, err := b.fresh("virt")
	if err == nil {
		err = os.Link(src, filepath.Join(pool, "base.raw"))
	}
	if err == nil {
		err = l.virsh(ctx, "pool-create-as", "v", "dir", "--target", pool)
	}
	if err != nil {
		return err
	}
	return b.compare(ctx, "root disk, libvirt", ours, work{name: "virsh vol-create-as, backed", n: ours.n, pid: l.pid(), do: func(ctx context.Context) error {
		return parallel(1, ours.n, func() error {
			return l.virsh(ctx, "vol-create-as", "v", b.name(), strconv.Itoa(diskSize), "--format", "qcow2", "--backing-vol", "base.raw", "--backing-vol-format", "raw")
		})
	}})
}

// extents measures a root disk of bases that lie in few and in many extents, on
// an XFS of its own, where the pool may share extents.
func (b *bench) extents(ctx context.Context) (err error) {
	dir, umount, err := b.xfs(ctx)
	if dir == "" {
		return err
	}
	defer func() { err = errors.Join(err, umount()) }()
	if err := os.Mkdir(filepath.Join(dir, "d"), 0o711); err != nil {
		return err
	}
	d, err := b.start(ctx, filepath.Join(dir, "d"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.stop()) }()
	if err := d.pool(ctx); err != nil {
		return err
	}
	fmt.Printf("  root disk by extents of the base, one at a time, XFS\n")
	for _, n := range []int64{1, 2_000, 20_000} {
		if err := b.fragmented(ctx, d, dir, n); err != nil {
			return err
		}
	}
	return nil
}

// xfs mounts an XFS of its own; "" where that cannot be.
func (b *bench) xfs(ctx context.Context) (dir string, umount func() error, err error) {
	if os.Geteuid() != 0 {
		fmt.Println("  left out: it mounts a file system, which needs root")
		return "", nil, nil
	}
	dir, err = b.fresh("xfs")
	disk := dir + ".img"
	err = errors.Join(err, os.WriteFile(disk, nil, 0o600), os.Truncate(disk, 16<<30))
	if err == nil {
		err = command(ctx, "mkfs.xfs", "-q", "-m", "reflink=1", disk)
	}
	if err == nil {
		err = command(ctx, "mount", "-o", "loop", disk, dir)
	}
	if err != nil {
		return "", nil, err
	}
	return dir, func() error {
		return errors.Join(command(context.WithoutCancel(ctx), "umount", dir), os.Remove(disk))
	}, nil
}

func (b *bench) fragmented(ctx context.Context, d *daemon, dir string, extents int64) error {
	src, name := filepath.Join(dir, "src"), fmt.Sprintf("e%d", extents)
	if err := scattered(src, extents); err != nil {
		return err
	}
	if err := d.add(ctx, name, src, "raw"); err != nil {
		return err
	}
	for _, format := range []string{"auto", "qcow2", "raw"} {
		var all []sample
		for range max(b.rounds, 3) {
			s, err := work{n: 5, pid: d.pid, do: func(ctx context.Context) error {
				return parallel(1, 5, func() error { return d.disk(ctx, b.name(), name, format) })
			}}.measure(ctx)
			if err != nil {
				return err
			}
			all = append(all, s)
		}
		printSample(work{name: fmt.Sprintf("%d extents, disk_format %s", extents, format)}, middle(all))
	}
	return nil
}

// scattered makes a raw file whose data lies in n pieces with holes between.
func scattered(path string, n int64) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	const piece, hole = 4 << 10, 124 << 10 // holes that an import keeps
	data := slices.Repeat([]byte("data"), piece/4)
	for i := range n {
		if _, err := f.WriteAt(data, (piece+hole)*i); err != nil {
			return err
		}
	}
	return f.Truncate(max((piece+hole)*n, mib))
}
