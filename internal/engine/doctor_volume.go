package engine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"runtime"
	"strings"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"github.com/tarn-storage/tarn/diskfmt"
	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/disk"
	"github.com/tarn-storage/tarn/internal/pool"
	"github.com/tarn-storage/tarn/internal/store"
)

// doctorPage is how many volumes are looked at between two looks at the records.
const doctorPage = 500

// around is one volume with the records around it, as far as they are there.
type around struct {
	volume   disk.Volume
	pool     *disk.Pool
	disk     *disk.Disk
	instance *disk.Instance
	lease    *disk.Lease
	images   []disk.Image
	base     *disk.Volume // what Backing names
	busy     bool         // an operation is at work on it
}

// name is how a person names the volume.
func (a around) name() string {
	switch {
	case a.disk != nil && a.instance != nil:
		return a.instance.Name + "/" + a.disk.Name
	case a.pool != nil:
		return a.pool.Name + "/" + a.volume.Name
	}
	return a.volume.Name
}

func (a around) sidecar() disk.Sidecar {
	return disk.Sidecar{Volume: a.volume, Images: a.images, Instance: a.instance, Disk: a.disk, Lease: a.lease}
}

// out reports whether the volume is out of use, so that nothing is expected of it.
func (a around) out() bool {
	switch a.volume.State {
	case disk.VolumeCorrupt, disk.VolumeLost, disk.VolumeQuarantined:
		return true
	}
	return false
}

// optionally returns a pointer to what get finds, or nil if it finds nothing.
func optionally[R any](r R, err error) (*R, error) {
	if errors.Is(err, errs.NotFound) {
		return nil, nil
	}
	return &r, err
}

// shared are the records that many volumes have around them, or nil for what is
// not there, as one transaction reads them.
type shared struct {
	pools map[disk.PoolID]*disk.Pool
	bases map[disk.VolumeID]*disk.Volume
}

// surroundings collects the records around v.
func surroundings(ctx context.Context, tx *store.Tx, v disk.Volume, w work, s shared) (a around, err error) {
	a.volume = v
	a.busy = w.operations[v.CreatedBy] || w.ids[string(v.ID)]
	a.pool, err = remember(s.pools, v.PoolID, func() (*disk.Pool, error) { return optionally(tx.Pools.Get(ctx, v.PoolID)) })
	if err == nil && v.Kind == disk.KindBase && v.Content != "" && !v.Adopted {
		a.images, _, err = tx.Images.List(ctx, store.Query{Where: []store.Where{store.Eq("content", v.Content), store.Eq("state", disk.ImageReady)}})
	}
	if err == nil && v.Kind == disk.KindDisk {
		a.disk, err = optionally(tx.Disks.One(ctx, store.Eq("volume_id", v.ID)))
	}
	if err == nil && a.disk != nil {
		a.instance, err = optionally(tx.Instances.Get(ctx, a.disk.InstanceID))
	}
	if err == nil {
		a.lease, err = leaseOf(ctx, tx, v.ID)
	}
	if err == nil && v.Backing != nil {
		b := v.Backing.VolumeID
		a.base, err = remember(s.bases, b, func() (*disk.Volume, error) { return optionally(tx.Volumes.Get(ctx, b)) })
	}
	if a.instance != nil {
		a.busy = a.busy || w.ids[string(a.instance.ID)]
	}
	for _, i := range a.images {
		a.busy = a.busy || w.ids[string(i.ID)]
	}
	return a, err
}

// checkVolumes compares every volume with its record, a page at a time, and reads
// the records of the next page meanwhile.
func (c *checkup) checkVolumes(ctx context.Context) error {
	var where []store.Where
	if c.only != "" {
		where = append(where, store.Eq("pool_id", c.only))
	}
	// Whoever begins to work after this is seen when what looks wrong is looked at again.
	w, err := query(ctx, c.e, underway)
	if err != nil {
		return err
	}
	read := make(chan []around)
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		defer close(read)
		return eachPage(ctx, c.e, where, w, func(page []around) error {
			select {
			case read <- page:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		})
	})
	g.Go(func() error {
		for page := range read {
			if err := c.checkPage(ctx, page); err != nil {
				return err
			}
		}
		return nil
	})
	return g.Wait()
}

// eachPage calls do with the volumes that meet where, with the records around
// them, a page at a time.
func eachPage(ctx context.Context, e *Engine, where []store.Where, w work, do func([]around) error) error {
	for after := ""; ; {
		page, err := query(ctx, e, func(ctx context.Context, tx *store.Tx) ([]around, error) {
			vols, next, err := tx.Volumes.List(ctx, store.Query{Where: where, After: after, Limit: doctorPage})
			if err != nil {
				return nil, err
			}
			after = next
			return gather(ctx, tx, vols, w)
		})
		if err == nil {
			err = do(page)
		}
		if err != nil || after == "" {
			return err
		}
	}
}

func gather(ctx context.Context, tx *store.Tx, vols []disk.Volume, w work) ([]around, error) {
	out := make([]around, 0, len(vols))
	s := shared{map[disk.PoolID]*disk.Pool{}, map[disk.VolumeID]*disk.Volume{}}
	for _, v := range vols {
		a, err := surroundings(ctx, tx, v, w, s)
		if err != nil {
			return nil, err
		}
		out = append(out, a)
	}
	return out, nil
}

// again reads the records around volumes once more. One that is gone is left out.
func (c *checkup) again(ctx context.Context, page []around) (out map[disk.VolumeID]around, err error) {
	err = c.e.store.View(ctx, func(ctx context.Context, tx *store.Tx) error {
		var vols []disk.Volume
		for _, a := range page {
			v, err := optionally(tx.Volumes.Get(ctx, a.volume.ID))
			if err != nil {
				return err
			}
			if v != nil {
				vols = append(vols, *v)
			}
		}
		w, err := underway(ctx, tx)
		if err != nil {
			return err
		}
		now, err := gather(ctx, tx, vols, w)
		out = make(map[disk.VolumeID]around, len(now))
		for _, a := range now {
			out[a.volume.ID] = a
		}
		return err
	})
	return out, err
}

// oddOnes looks at the volumes of a page, at as many at once as there are CPUs,
// and returns those that look wrong, in the order of the page.
func (c *checkup) oddOnes(ctx context.Context, page []around) ([]around, error) {
	wrong := make([]bool, len(page))
	g, looking := errgroup.WithContext(ctx)
	var turn atomic.Int64
	for range runtime.GOMAXPROCS(0) {
		g.Go(func() error {
			for {
				i := int(turn.Add(1)) - 1
				if i >= len(page) || looking.Err() != nil {
					return looking.Err()
				}
				fs, err := c.look(looking, page[i], true)
				if err != nil {
					return err
				}
				wrong[i] = len(fs) > 0
			}
		})
	}
	err := g.Wait()
	var odd []around
	for i, a := range page {
		if wrong[i] {
			odd = append(odd, a)
		}
	}
	return odd, err
}

// checkPage looks at the volumes of a page and, at those that look wrong, once
// more, between two looks at the records. What changed in between, or is being
// worked on, is not reported: the next run will see it.
func (c *checkup) checkPage(ctx context.Context, page []around) error {
	for _, a := range page {
		if a.lease != nil && a.lease.State == disk.LeaseUnverified {
			c.leases++
		}
		if a.out() {
			c.excluded[a.volume.State]++
		}
	}
	odd, err := c.oddOnes(ctx, page)
	if err != nil {
		return err
	}
	if len(odd) == 0 {
		return ctx.Err()
	}
	before, err := c.again(ctx, odd)
	if err != nil {
		return err
	}
	wrong := map[disk.VolumeID][]finding{}
	for id, a := range before {
		if wrong[id], err = c.look(ctx, a, false); err != nil {
			return err
		}
	}
	after, err := c.again(ctx, odd)
	if err != nil {
		return err
	}
	for _, a := range odd {
		id := a.volume.ID
		if now, ok := after[id]; ok && !now.busy && reflect.DeepEqual(now, before[id]) {
			c.add(ctx, wrong[id]...)
		}
	}
	return nil
}

// look compares one volume with its record. first counts what the notes tell.
func (c *checkup) look(ctx context.Context, a around, first bool) ([]finding, error) {
	if a.busy {
		return nil, nil
	}
	p, open := c.open(a.volume.PoolID)
	if fs := c.lookRecord(a, p); len(fs) > 0 || a.pool == nil {
		return fs, nil
	}
	fs := c.lookLinks(a)
	if len(fs) > 0 {
		return fs, nil // nor is the sidecar rewritten from such a record: it may know better
	}
	if strings.HasSuffix(string(a.volume.State), "ing") {
		return []finding{c.residue(a, p)}, nil
	}
	if !open || c.guests.doubted[a.volume.ID] {
		return nil, nil
	}
	fs, err := c.lookObject(ctx, a, p, first)
	switch _, open := c.open(a.volume.PoolID); {
	case !open:
		return nil, ctx.Err() // stopped meanwhile
	case errors.Is(err, errs.NotFound):
		return []finding{c.gone(a)}, nil
	case errors.Is(err, errs.Unavailable) && ctx.Err() == nil:
		return []finding{found("I14", a.name(), "%s cannot be looked at: %s", a.name(), message(err)).advise("see to the storage of pool %s", a.pool.Name)}, nil
	}
	return fs, err
}

// gone says that a volume on record is not in its pool.
func (c *checkup) gone(a around) finding {
	return c.exclude(found("I1", a.name(), "%s is on record, its bytes (%s) are not in pool %s", a.name(), a.volume.Name, a.pool.Name), a, disk.VolumeLost)
}

// lookRecord judges what the record of a volume says by itself (I1, I2, I13).
func (c *checkup) lookRecord(a around, p *pool.Pool) []finding {
	v := a.volume
	impossible := func(format string, args ...any) []finding {
		if a.out() {
			return nil
		}
		f := found("I2", a.name(), "the record of %s is impossible: %s", a.name(), fmt.Sprintf(format, args...))
		return []finding{c.exclude(f, a, disk.VolumeQuarantined)}
	}
	if a.pool == nil {
		return []finding{found("I1", a.name(), "volume %s is recorded in pool %s, which is not on record", v.Name, v.PoolID).
			advise("bring the pool back: tarn pool import --driver dir --path DIR")}
	}
	if v.State == disk.VolumeCreating || v.State == disk.VolumeDeleting {
		return nil // nobody relies on it
	}
	_, err := diskfmt.ParseFormat(string(v.Format))
	switch {
	case err != nil:
		return impossible("its format is %q", v.Format)
	case v.VirtualSize <= 0 || v.VirtualSize > disk.MaxSize || v.VirtualSize%disk.Sector != 0:
		return impossible("its size is %d bytes", v.VirtualSize)
	case v.RequestedSize <= 0 || v.RequestedSize > v.VirtualSize:
		return impossible("%d bytes were requested of its %d", v.RequestedSize, v.VirtualSize)
	case v.Format == diskfmt.Raw && v.Backing != nil:
		return impossible("a raw volume cannot read from another")
	case v.Format == diskfmt.Raw && v.ClusterSize != 0:
		return impossible("a raw volume has no clusters")
	case v.Format == diskfmt.Qcow2 && (v.ClusterSize < 512 || v.ClusterSize > 2<<20 || v.ClusterSize&(v.ClusterSize-1) != 0):
		return impossible("its cluster size is %d", v.ClusterSize)
	case p != nil && !p.Caps.Holds(v.Format):
		return impossible("its pool holds no volumes of format %s", v.Format)
	case a.disk != nil && a.disk.Size != v.VirtualSize:
		return impossible("the disk has %d bytes, its volume %d", a.disk.Size, v.VirtualSize)
	}
	return nil
}

// lookLinks judges what the record of a volume says of others (I1, I4-I8).
func (c *checkup) lookLinks(a around) []finding {
	var fs []finding
	v := a.volume
	switch {
	case v.Kind == disk.KindBase && v.State == disk.VolumeReady && !c.guests.doubted[v.ID]:
		fs = append(fs, c.lookBase(a)...)
	case v.Kind == disk.KindDisk && a.disk == nil && v.State != disk.VolumeDeleting:
		fs = append(fs, c.exclude(found("I1", a.name(), "volume %s is recorded as a disk's, and no disk has it", a.name()), a, disk.VolumeQuarantined))
	case a.disk != nil && a.instance == nil:
		fs = append(fs, found("I1", a.name(), "disk %s (%s) belongs to instance %s, which is not on record", a.disk.Name, a.disk.Serial, a.disk.InstanceID).
			advise("pool %s still tells its name: delete the pool with --keep-data and import it again", a.pool.Name))
	}
	if v.Backing != nil && !a.out() {
		if f := c.lookBacking(a); f != nil {
			fs = append(fs, *f)
		}
	}
	if a.disk != nil {
		fs = append(fs, lookGuest(a)...)
	}
	if l := a.lease; l != nil && !c.hosts[l.HostID] {
		fs = append(fs, found("I8", a.name(), "%s is attached to host %s, which is not on record", a.name(), l.HostID).
			advise("if that host is gone for good: tarn disk detach %s --force", a.name()))
	}
	return fs
}

// lookBase judges the key of a base (I5).
func (c *checkup) lookBase(a around) []finding {
	v := a.volume
	hex, ok := strings.CutPrefix(v.Content, "b3-4m:")
	if !ok || len(hex) != 64 {
		return []finding{c.exclude(found("I5", a.name(), "base %s has no content digest: its record says %q", a.name(), v.Content), a, disk.VolumeQuarantined)}
	}
	if want := BaseName(v.Content, v.Format); v.Name != want && !v.Adopted {
		return []finding{c.exclude(found("I5", a.name(), "base %s is recorded with content %s in format %s, whose name is %s", a.name(), v.Content, v.Format, want), a, disk.VolumeQuarantined)}
	}
	return nil
}

// lookBacking judges what a volume reads from (I4-I6).
func (c *checkup) lookBacking(a around) *finding {
	v, b := a.volume, a.volume.Backing
	var f finding
	switch {
	case a.disk != nil && (a.disk.Role == disk.RoleEphemeral || a.disk.Role == disk.RoleSwap):
		f = found("I5", a.name(), "%s is a %s disk and reads from %s; such disks share nothing", a.name(), a.disk.Role, b.Name)
	case a.base == nil:
		f = found("I4", a.name(), "%s reads from volume %s (%s), which is not on record", a.name(), b.Name, b.VolumeID).
			advise("nothing can read the disk until then: tarn pool delete %s --keep-data, then tarn pool import, records what its sidecar says", a.pool.Name)
		return &f
	case a.base.Kind != disk.KindBase || a.base.PoolID != v.PoolID:
		f = found("I4", a.name(), "%s reads from %s, which is no base of its pool", a.name(), a.base.Name)
	case a.base.Content != b.Content:
		f = found("I6", a.name(), "%s was made over content %s, its base %s holds %s", a.name(), b.Content, a.base.Name, a.base.Content)
	case a.base.Format != b.Format || a.base.Name != b.Name:
		f = found("I2", a.name(), "%s reads from %s in format %s, on record is %s in format %s", a.name(), b.Name, b.Format, a.base.Name, a.base.Format)
	default:
		return nil
	}
	f = c.exclude(f, a, disk.VolumeCorrupt)
	return &f
}

// lookGuest judges what the guest sees of a disk (I7, I13).
func lookGuest(a around) []finding {
	d := a.disk
	if !disk.IsSerial(d.Serial) {
		return []finding{found("I7", a.name(), "the serial of %s is %q, not 20 characters of a-z and 0-9", a.name(), d.Serial).
			advise("the guest may know the disk by it: only its owner can decide to make the disk anew")}
	}
	var info driverInfo
	if err := json.Unmarshal(d.DriverInfo, &info); err != nil || info.V != 1 {
		return []finding{found("I13", a.name(), "driver_info of %s has version %d, this build knows 1", a.name(), info.V).
			advise("use the tarn that wrote it; the disk cannot be attached with this one")}
	}
	return nil
}

// exclude makes f mendable by taking the volume out of use: nothing can read,
// attach or export it any more, and nothing is deleted.
func (c *checkup) exclude(f finding, a around, to disk.VolumeState) finding {
	return f.repair(fmt.Sprintf("records it as %s, so that nobody can use it", to), func(ctx context.Context) (string, error) {
		return fmt.Sprintf("recorded it as %s; nothing of it was deleted", to), c.e.mark(ctx, a.volume, to)
	})
}

// mark records another state of a volume that has not changed since it was read.
func (e *Engine) mark(ctx context.Context, v disk.Volume, to disk.VolumeState) error {
	return e.store.Update(ctx, func(ctx context.Context, tx *store.Tx) error {
		now, err := tx.Volumes.Get(ctx, v.ID)
		if err != nil {
			return err
		}
		if now.State != v.State || now.Generation != v.Generation {
			return errs.New(errs.Busy, "doctor", v.Name, "the volume changed meanwhile").WithHint("try again")
		}
		now.State = to
		return errors.Join(tx.Volumes.Update(ctx, now), e.emit(ctx, tx, "volume."+string(to), volumeSubject(now), ""))
	})
}
