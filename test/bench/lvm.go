package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"

	"github.com/tarn-storage/tarn/api"
)

const (
	group    = "tarn-bench"
	thinPool = "thin"
)

// lvmthin measures root disks from bases in a thin pool of LVM: on the disk that
// TARN_TEST_LVM names, or where it names none in a guest that has one. There
// both sides run on an emulated processor.
func (b *bench) lvmthin(ctx context.Context) (err error) {
	disk := os.Getenv("TARN_TEST_LVM")
	if disk == "" {
		return b.inGuest(ctx, "lvmthin")
	}
	work, err := volumeGroup(ctx, b, disk)
	if err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, command(context.WithoutCancel(ctx), "umount", work),
			command(context.WithoutCancel(ctx), "lvm", "vgremove", "-ff", "-y", group))
	}()
	p, err := b.peers(ctx, "/run")
	if p == nil {
		return err
	}
	defer func() { err = errors.Join(err, p.stop()) }()
	d, err := b.start(ctx, work)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.stop()) }()
	n, err := p.nova(ctx, work, options{"libvirt": {"images_volume_group": group}})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, n.stop()) }()
	err = d.poolOf(ctx, api.PoolCreate{Driver: "lvmthin", Source: api.PoolSource{VolumeGroup: group, ThinPool: thinPool}})
	if err == nil {
		err = b.bases(filepath.Join(work, "_base"))
	}
	for _, x := range cachedBases {
		if err == nil {
			err = d.add(ctx, x.name, filepath.Join(work, "_base", x.name), "raw")
		}
	}
	if err != nil {
		return err
	}
	return errors.Join(b.lvmRows(ctx, d, n, p), b.lvmLibvirt(ctx, d, p))
}

// inGuest has a part measured in the guest that tests of LVM use.
func (b *bench) inGuest(ctx context.Context, part string) error {
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-o", b.path("bin")+"/", "./test/bench")
	cmd.Dir, cmd.Env = b.repo, append(os.Environ(), "CGO_ENABLED=0")
	if err := output(cmd); err != nil {
		return err
	}
	peers, err := exec.CommandContext(ctx, "test/bench/peers").Output()
	if err != nil {
		return fmt.Errorf("making the peers: %w", err)
	}
	const at = "/bench/"
	args := []string{"-s", "128", "-m", "3072", "-t", "7200", "-d", string(peers[:len(peers)-1])}
	for _, program := range []string{"tarn", "tarnd"} {
		args = append(args, "-f", b.path("bin", program)+":"+at+program)
	}
	args = append(args, b.path("bin", "bench"), "-guest", "-bin", at, "-only", part, "-rounds", strconv.Itoa(b.rounds))
	cmd = exec.CommandContext(ctx, "test/lvm/run", args...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = b.repo, os.Stdout, os.Stderr
	return cmd.Run()
}

// volumeGroup makes a group with a thin pool on disk and mounts a file system of
// the group, on which the run works.
func volumeGroup(ctx context.Context, b *bench, disk string) (string, error) {
	dir, err := b.fresh("lvm")
	for _, c := range [][]string{
		{"lvm", "vgcreate", "-q", "-y", group, disk},
		{"lvm", "lvcreate", "-q", "-y", "-n", "work", "-L", "16g", group},
		{"lvm", "lvcreate", "-q", "-y", "-L", "16g", "-T", group + "/" + thinPool},
		{"mkfs.ext4", "-q", "/dev/" + group + "/work"},
		{"mount", "-t", "ext4", "/dev/" + group + "/work", dir},
	} {
		if err == nil {
			err = command(ctx, c[0], c[1:]...)
		}
	}
	return dir, err
}

func (b *bench) lvmRows(ctx context.Context, d *daemon, n *nova, p *peers) error {
	ours := func(x cachedBase) work { return b.root(d, x, "auto") }
	lvm := func(x cachedBase) work {
		return n.work("Nova's lvm, cached base of "+x.label, 1, order{Type: "lvm", Base: x.name, Size: largeDisk}, func(ctx context.Context, id string) error {
			return command(ctx, "lvm", "lvremove", "-q", "-f", group+"/"+id+"_disk")
		})
	}
	x := cachedBases[usual]
	origin := "peer-" + x.name
	err := errors.Join(
		command(ctx, "lvm", "lvcreate", "-q", "-y", "-n", origin, "-V", strconv.FormatInt(x.size, 10)+"b", "-T", group+"/"+thinPool),
		p.convert(ctx, filepath.Join(n.dir, "_base", x.name), origin))
	if err != nil {
		return err
	}
	snapshot := work{name: "lvcreate -s, lvextend", n: handful, do: func(ctx context.Context) error {
		return parallel(1, handful, func() error {
			name := b.name()
			return errors.Join(
				command(ctx, "lvm", "lvcreate", "-q", "-y", "-s", "-kn", "-n", name, group+"/"+origin),
				command(ctx, "lvm", "lvextend", "-q", "-L", strconv.FormatInt(largeDisk, 10)+"b", group+"/"+name))
		})
	}}
	full := work{name: "lvcreate -T, qemu-img convert", n: 1, do: func(ctx context.Context) error {
		name := b.name()
		return errors.Join(
			command(ctx, "lvm", "lvcreate", "-q", "-y", "-n", name, "-V", strconv.FormatInt(largeDisk, 10)+"b", "-T", group+"/"+thinPool),
			p.convert(ctx, filepath.Join(n.dir, "_base", x.name), name))
	}}
	return errors.Join(
		b.compare(ctx, "root disk, thin LVM, one at a time", ours(x), lvm(x), snapshot, full),
		b.bySize(ctx, "root disk, thin LVM, by the base's size", ours),
		b.bySize(ctx, "the same of Nova's lvm", lvm),
	)
}

// convert fills a logical volume with an image.
func (p *peers) convert(ctx context.Context, file, volume string) error {
	return output(p.program(ctx, "/usr/bin/qemu-img", "convert", "-n", "-W", "-m", "16", "-f", "raw", "-O", "raw", file, "/dev/"+group+"/"+volume))
}

// lvmLibvirt compares with libvirt's clone of a volume, which is a thick copy:
// libvirt knows no thin ones.
func (b *bench) lvmLibvirt(ctx context.Context, d *daemon, p *peers) error {
	l, err := b.libvirtOf(ctx, p)
	if err != nil {
		return err
	}
	defer l.stop()
	x := cachedBases[usual]
	for _, args := range [][]string{
		{"pool-create-as", "l", "logical", "--source-name", group, "--target", "/dev/" + group},
		{"vol-create-as", "l", x.name, strconv.FormatInt(x.size, 10)},
		{"vol-upload", "--pool", "l", x.name, filepath.Join(d.dir, "_base", x.name)},
	} {
		if err == nil {
			err = l.virsh(ctx, args...)
		}
	}
	if err != nil {
		return err
	}
	return b.compare(ctx, "root disk, LVM, libvirt", b.root(d, x, "auto"), l.create(b, "l", x, 1), l.clone(b, "l", x, 1))
}
