package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/tarn-storage/tarn/api"
)

// list measures looking at many volumes, and what a daemon with many costs.
func (b *bench) list(ctx context.Context) (err error) {
	src, err := b.small()
	if err != nil {
		return err
	}
	d, err := b.ready(ctx, src)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.stop()) }()
	begin := time.Now()
	if err := parallel(crowd, b.volumes-1, func() error { return d.disk(ctx, b.name(), "i", "qcow2") }); err != nil { // the base is one, too
		return err
	}
	fmt.Printf("    %-38s %10.0f/s\n", fmt.Sprintf("%d disks, %d clients", b.volumes-1, crowd), float64(b.volumes-1)/time.Since(begin).Seconds())
	if err := errors.Join(b.lists(ctx, d), b.shows(ctx, d), d.stop()); err != nil {
		return err
	}
	return b.restarts(ctx, d.dir)
}

// lists compares a list of all volumes. libvirt's pool holds the same files, by
// links, without their sidecars.
func (b *bench) lists(ctx context.Context, d *daemon) error {
	l, err := b.libvirt(ctx)
	if l == nil {
		return err
	}
	defer l.stop()
	pool, err := b.fresh("virt")
	var vols api.List[api.Volume]
	if err == nil {
		vols, err = d.Volumes(ctx, "", api.Page{Limit: -1})
	}
	for _, v := range vols.Items {
		err = errors.Join(err, os.Link(v.Path, filepath.Join(pool, filepath.Base(v.Path))))
	}
	if err == nil {
		err = l.virsh(ctx, "pool-create-as", "v", "dir", "--target", pool)
	}
	if err != nil {
		return err
	}
	return b.compare(ctx, fmt.Sprintf("list of %d volumes", len(vols.Items)),
		work{name: "tarn volume list", pid: d.pid, do: func(ctx context.Context) error {
			return command(ctx, b.path("bin", "tarn"), "--socket", d.socket, "volume", "list")
		}},
		work{name: "virsh vol-list --details", pid: l.pid(), do: func(ctx context.Context) error {
			return l.virsh(ctx, "vol-list", "v", "--details")
		}})
}

// shows compares looking at 1,000 volumes, one by one and at once, and checking
// all headers against the records with looking at each by qemu-img.
func (b *bench) shows(ctx context.Context, d *daemon) error {
	vols, err := d.Volumes(ctx, "", api.Page{Limit: min(1000, b.volumes)})
	if err != nil {
		return err
	}
	n := len(vols.Items)
	info := work{name: "qemu-img info", n: n, do: func(ctx context.Context) error {
		for _, v := range vols.Items {
			if err := command(ctx, "qemu-img", "info", "-f", v.Format, v.Path); err != nil {
				return err
			}
		}
		return nil
	}}
	rounds := b.rounds
	b.rounds = min(rounds, 2) // a round of the peer takes seconds
	defer func() { b.rounds = rounds }()
	return errors.Join(
		b.compare(ctx, fmt.Sprintf("%d volumes shown one by one", n), work{name: "tarn, Go client", n: n, pid: d.pid, do: func(ctx context.Context) error {
			for _, v := range vols.Items {
				if _, err := d.Volume(ctx, v.ID); err != nil {
					return err
				}
			}
			return nil
		}}, info),
		b.compare(ctx, fmt.Sprintf("%d volumes shown in one call", n), work{name: "tarn, Go client", n: n, pid: d.pid, do: func(ctx context.Context) error {
			all, err := d.Volumes(ctx, "", api.Page{Limit: n})
			if err == nil && len(all.Items) != n {
				err = fmt.Errorf("%d volumes are shown, want %d", len(all.Items), n)
			}
			return err
		}}, info),
		b.compare(ctx, fmt.Sprintf("headers and sidecars of %d volumes verified, each", b.volumes), work{name: "tarn doctor", n: b.volumes, pid: d.pid, do: func(ctx context.Context) error {
			r, err := d.Doctor(ctx, api.Doctor{})
			if err == nil && len(r.Problems) > 0 {
				err = fmt.Errorf("doctor finds %+v", r.Problems[0])
			}
			return err
		}}, info),
	)
}

// restarts starts the stopped daemon again: after an orderly stop, and after it
// was killed at work.
func (b *bench) restarts(ctx context.Context, dir string) (err error) {
	d, err := b.start(ctx, dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.stop()) }()
	fmt.Printf("  a daemon with %d volumes\n", b.volumes)
	fmt.Printf("    %-38s %10.3f ms\n", "start", ms(d.began))
	if _, err := d.Volumes(ctx, "", api.Page{Limit: -1}); err != nil {
		return err
	}
	rss, err := d.resident()
	if err != nil {
		return err
	}
	fmt.Printf("    %-38s %10.1f MiB\n", "resident after a list of all", float64(rss)/(1<<20))
	working := make(chan error, 1)
	go func() {
		working <- parallel(crowd, b.volumes, func() error { return d.disk(ctx, b.name(), "i", "qcow2") })
	}()
	time.Sleep(500 * time.Millisecond)
	err = d.end(syscall.SIGKILL)
	if werr := <-working; werr == nil && err == nil {
		err = errors.New("the daemon had nothing left to do when it was killed")
	}
	if err != nil {
		return err
	}
	again, err := b.start(ctx, dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, again.stop()) }()
	begin := time.Now()
	for _, state := range []string{"queued", "running", "undoing"} {
		ops, err := again.Operations(ctx, state, api.Page{Limit: -1})
		if err != nil {
			return err
		}
		for _, op := range ops.Items {
			if _, err := again.OperationWait(ctx, op.ID, time.Minute); err != nil {
				return err
			}
		}
	}
	fmt.Printf("    %-38s %10.3f ms\n", "killed at work: start", ms(again.began))
	fmt.Printf("    %-38s %10.3f ms\n", "killed at work: all recovered", ms(again.began+time.Since(begin)))
	return nil
}
