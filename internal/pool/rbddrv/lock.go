package rbddrv

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/disk"
	"github.com/tarn-storage/tarn/internal/pool/driver"
)

// volume is what this process does with one image. It is locked while the image
// is opened, closed or changed: then every watcher but those of open devices is
// somebody else's. Volumes outlive the pool they were opened in, as devices do.
type volume struct {
	sync.Mutex
	users   int // who have it locked or wait for it
	readers int // devices in mode Read; -1 is one in mode Write

	// Open devices, in any mode: QEMU's driver is a watcher whatever it is asked for.
	devices map[*device]bool
}

// key is one image of one pool.
type key struct {
	pool  disk.PoolID
	image string
}

var volumes = struct {
	sync.Mutex
	all map[key]*volume
}{all: map[key]*volume{}}

// enter locks the volume k.
func enter(k key) *volume {
	volumes.Lock()
	v := volumes.all[k]
	if v == nil {
		v = &volume{devices: map[*device]bool{}}
		volumes.all[k] = v
	}
	v.users++
	volumes.Unlock()
	v.Lock()
	return v
}

// leave unlocks v and forgets it where nothing is left of it.
func (v *volume) leave(k key) {
	v.Unlock()
	volumes.Lock()
	defer volumes.Unlock()
	if v.users--; v.users == 0 && len(v.devices) == 0 {
		delete(volumes.all, k)
	}
}

// free returns errs.Busy if this process has v open for writing, or to one who
// wants to write for reading.
func (v *volume) free(op, subject string, write bool) error {
	if v.readers < 0 || v.readers > 0 && write {
		return errs.New(errs.Busy, op, subject, "this tarnd has the volume open")
	}
	return nil
}

// alone returns errs.Busy if anybody has the image open who is not a device of
// this process. Whether they write cannot be seen.
func (p *pool) alone(ctx context.Context, op, name string, v *volume) error {
	w, err := p.watchers(ctx, op, name)
	if err == nil && len(v.strangers(w)) > 0 {
		err = watched(op, name, w)
	}
	return err
}

// strangers returns the watchers that are no devices of this process, or more
// than these if there are too many. A device whose daemon has died is nobody: the
// place that it leaves among the watchers may be a guest's. Where one watcher
// can only be one device's it is known to be that from now on.
func (v *volume) strangers(w []watcher) []watcher {
	known, unknown := map[int64]bool{}, []*device{}
	for d := range v.devices {
		switch {
		case d.ended():
		case d.client != 0:
			known[d.client] = true
		default:
			unknown = append(unknown, d)
		}
	}
	others := slices.DeleteFunc(slices.Clone(w), func(c watcher) bool { return known[c.Client] })
	if len(others) > len(unknown) {
		return others
	}
	if len(others) == 1 && len(unknown) == 1 {
		unknown[0].client = others[0].Client
	}
	return nil
}

func watched(op, subject string, w []watcher) error {
	var who []string
	for _, c := range w {
		who = append(who, fmt.Sprintf("client.%d at %s", c.Client, c.Address))
	}
	return errs.New(errs.Busy, op, subject, "the image is open elsewhere (%s)", strings.Join(who, ", ")).
		WithHint("stop the guest or the program that uses it; Ceph forgets one that died after 30 seconds")
}

// Probe implements driver.Prober.
func (p *pool) Probe(ctx context.Context, r driver.Ref) error {
	const op = "volume.probe"
	name, i, err := p.find(ctx, op, r)
	if err != nil {
		return err
	}
	k := key{p.id, i.ID}
	v := enter(k)
	defer v.leave(k)
	if err := v.free(op, subject(r), true); err != nil {
		return err
	}
	return p.alone(ctx, op, name, v)
}

// find looks r up and refuses another image under its name.
func (p *pool) find(ctx context.Context, op string, r driver.Ref) (name string, i image, err error) {
	if name, err = imageOf(op, r); err != nil {
		return name, i, err
	}
	if err = p.here(ctx, op, subject(r)); err != nil {
		return name, i, err
	}
	if i, err = p.info(ctx, name); err != nil {
		return name, i, missing(op, r, err)
	}
	return name, i, sameImage(op, r, i.ID)
}

// sameImage refuses another image under the volume's name.
func sameImage(op string, r driver.Ref, id string) error {
	if r.BackendID != "" && r.BackendID != id {
		return errs.New(errs.Corrupt, op, subject(r), "another image has the volume's name: it is %s, the record says %s", id, r.BackendID).
			WithHint("see what it is, and rename it if it is not needed there")
	}
	return nil
}

// missing words a failed lookup.
func missing(op string, r driver.Ref, err error) error {
	if errors.Is(err, errs.NotFound) {
		return errs.New(errs.NotFound, op, subject(r), "the volume is not in the pool: %w", err)
	}
	return failed(op, subject(r), err)
}
