package engine

import (
	"context"

	"github.com/tarn-storage/tarn/internal/disk"
	"github.com/tarn-storage/tarn/internal/store"
)

// guestView collects what must differ between disks (I7) and between bases (I5)
// to find what does not. The schema guards some of it; a guest must not depend
// on that.
type guestView struct {
	seen    map[string]disk.VolumeID // what was seen, and the first volume that has it
	twins   map[[2]disk.VolumeID]bool
	doubted map[disk.VolumeID]bool // shares what it must not
}

func newGuestView() guestView {
	return guestView{seen: map[string]disk.VolumeID{}, twins: map[[2]disk.VolumeID]bool{}, doubted: map[disk.VolumeID]bool{}}
}

// diskKeys returns what no other disk may have, in the words for it.
func diskKeys(d disk.Disk) map[string]string {
	keys := map[string]string{
		"serial " + d.Serial:                              "the serial " + d.Serial,
		"device " + string(d.InstanceID) + "/" + d.Device: "the device name " + d.Device,
	}
	if d.BootIndex != 0 {
		keys["boot "+string(d.InstanceID)+"/"+itoa(d.BootIndex)] = "the boot index " + itoa(d.BootIndex)
	}
	return keys
}

// baseKeys returns what no other base may have.
func baseKeys(v disk.Volume) map[string]string {
	if v.Content == "" || v.Adopted {
		return nil
	}
	return map[string]string{"content " + string(v.PoolID) + v.Content + string(v.Format): "the content " + v.Content}
}

func (a around) keys() map[string]string {
	if a.disk != nil {
		return diskKeys(*a.disk)
	}
	return baseKeys(a.volume)
}

func (g *guestView) see(id disk.VolumeID, keys map[string]string) {
	for key := range keys {
		if other, ok := g.seen[key]; ok {
			g.twins[[2]disk.VolumeID{other, id}] = true
			continue
		}
		g.seen[key] = id
	}
}

// checkGuestView reports the disks and bases that share what must differ, if
// they do so at one moment.
func (c *checkup) checkGuestView(ctx context.Context) error {
	err := pages(ctx, c.e, func(tx *store.Tx) store.Table[disk.DiskID, disk.Disk] { return tx.Disks }, func(_ context.Context, _ *store.Tx, rows []disk.Disk) error {
		for _, d := range rows {
			c.guests.see(d.VolumeID, diskKeys(d))
		}
		return nil
	})
	if err == nil {
		err = pages(ctx, c.e, func(tx *store.Tx) store.Table[disk.VolumeID, disk.Volume] { return tx.Volumes }, func(_ context.Context, _ *store.Tx, rows []disk.Volume) error {
			for _, v := range rows {
				if v.Kind == disk.KindBase {
					c.guests.see(v.ID, baseKeys(v))
				}
			}
			return nil
		})
	}
	if err != nil {
		return err
	}
	for t := range c.guests.twins {
		pair, err := c.again(ctx, []around{{volume: disk.Volume{ID: t[0]}}, {volume: disk.Volume{ID: t[1]}}})
		if err != nil {
			return err
		}
		a, aok := pair[t[0]]
		b, bok := pair[t[1]]
		if !aok || !bok || c.only != "" && a.volume.PoolID != c.only && b.volume.PoolID != c.only {
			continue
		}
		if fs := clashes(a, b); len(fs) > 0 {
			c.guests.doubted[t[0]], c.guests.doubted[t[1]] = true, true
			c.add(ctx, fs...)
		}
	}
	return nil
}

func clashes(a, b around) []finding {
	var fs []finding
	other := b.keys()
	for key, what := range a.keys() {
		if other[key] == "" {
			continue
		}
		if a.volume.Kind == disk.KindBase {
			fs = append(fs, found("I5", b.name(), "bases %s and %s both have %s", a.name(), b.name(), what).
				advise("tarn cache prune removes the one that no disk reads from"))
			continue
		}
		fs = append(fs, found("I7", b.name(), "disks %s and %s both have %s", a.name(), b.name(), what).
			advise("a guest that has seen one of them must not find the other: delete one, or give it to another instance"))
	}
	return fs
}
