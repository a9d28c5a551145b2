package rbddrv

import (
	"bytes"
	"context"
	"errors"
	"strings"

	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/disk"
	"github.com/tarn-storage/tarn/internal/pool/driver"
)

// isMarkerOf reports whether the marker is that of pool id. Its bytes are the
// pool package's, but a marker carries its pool's id as text and no other's.
func isMarkerOf(marker []byte, id disk.PoolID) bool {
	return id != "" && bytes.Contains(marker, []byte(id))
}

// readMarker returns the marker, or errs.NotFound.
func (t *tool) readMarker(ctx context.Context, op string) ([]byte, error) {
	i, err := t.info(ctx, poolName)
	if err != nil {
		return nil, failed(op, t.where(), err)
	}
	return t.record(ctx, op, poolName, i.ID, markerKey)
}

// marker implements driver.Type.Marker.
func marker(ctx context.Context, c driver.Config) ([]byte, error) {
	const op = "pool.marker"
	t, err := begin(ctx, op, c)
	if err != nil {
		return nil, err
	}
	return t.readMarker(ctx, op)
}

func begin(ctx context.Context, op string, c driver.Config) (*tool, error) {
	if err := ctx.Err(); err != nil {
		return nil, failed(op, c.Source.CephPool, err)
	}
	return newTool(op, c)
}

// prepare implements driver.Type.Prepare. The marker's image gets its name when
// it is complete.
func prepare(ctx context.Context, c driver.Config, marker []byte) error {
	const op = "pool.prepare"
	t, err := begin(ctx, op, c)
	if err != nil {
		return err
	}
	if !isMarkerOf(marker, c.ID) || len(marker) > maxRecord {
		return errs.New(errs.Internal, op, t.where(), "the marker (%d bytes) does not name pool %q", len(marker), c.ID)
	}
	if err := checkID(op, string(c.ID)); err != nil {
		return err
	}
	there, err := t.marked(ctx, op, c)
	if there || err != nil {
		return err
	}
	unfinished := newName + string(c.ID)
	err = t.create(ctx, op, unfinished, sizeUnit)
	if errors.Is(err, errs.NotFound) {
		return errs.New(errs.Unavailable, op, t.where(), "the Ceph pool %s cannot be opened: %w", t.where(), err).
			WithHint("make it with \"ceph osd pool create\" and \"rbd pool init\", a namespace with \"rbd namespace create\"")
	}
	if err = ignoring(errs.Exists, err); err != nil { // there: of an earlier call that died
		return err
	}
	if err := t.makeTrash(ctx, op); err != nil {
		return err
	}
	i, err := t.info(ctx, unfinished)
	if err == nil {
		err = t.setRecord(ctx, op, unfinished, i.ID, markerKey, marker)
	}
	if err == nil {
		err = t.rename(ctx, op, unfinished, poolName)
	}
	if errors.Is(err, errs.Exists) { // another was faster
		err = t.removeImage(ctx, op, unfinished)
	}
	if err == nil { // of two who rename at once both may be told that they did
		_, err = t.marked(ctx, op, c)
	}
	return failed(op, t.where(), err)
}

// makeTrash makes the object that lists what is in the trash, through which rbd
// removes every image. When the Ceph pool is full that may be written to, but
// not be made.
func (t *tool) makeTrash(ctx context.Context, op string) error {
	const trash = "rbd_trash"
	_, err := t.rados(ctx, op, t.where(), false, "create", trash)
	if err == nil {
		return nil
	}
	if _, serr := t.rados(ctx, op, t.where(), true, "stat", trash); serr == nil {
		return nil // it was there
	}
	return err
}

// marked reports whether pool c.ID is here; another one is errs.Conflict.
func (t *tool) marked(ctx context.Context, op string, c driver.Config) (bool, error) {
	old, err := t.readMarker(ctx, op)
	switch {
	case errors.Is(err, errs.NotFound):
		return false, nil
	case err != nil:
		return false, err
	case !isMarkerOf(old, c.ID):
		return false, errs.New(errs.Conflict, op, t.where(), "%s is another pool's", t.where()).
			WithHint("take it over with \"tarn pool import\", or choose another Ceph pool or namespace")
	}
	return true, nil
}

// open implements driver.Type.Open.
func open(ctx context.Context, c driver.Config) (driver.Driver, driver.Capabilities, error) {
	const op = "pool.open"
	t, err := begin(ctx, op, c)
	if err != nil {
		return nil, driver.Capabilities{}, err
	}
	there, err := t.marked(ctx, op, c)
	if err == nil && !there {
		err = errs.New(errs.Unavailable, op, t.where(), "%s carries no tarn pool", t.where())
	}
	if err != nil {
		return nil, driver.Capabilities{}, err
	}
	p, err := t.serve(ctx, op, c)
	if err != nil {
		return nil, driver.Capabilities{}, err
	}
	return p, capabilities, nil
}

// serve makes this opening of the pool the only one in the cluster, until the
// marker's image is closed. Each who wants to serve it opens that image for
// writing, by which all others see a watcher, and goes back unless it is alone:
// of two at once one at most stays. A watcher that died is forgotten after half a
// minute. It may only seem dead; therefore the one who stays writes, and with
// that takes the image's exclusive lock, which puts a dead holder on Ceph's
// blocklist.
func (t *tool) serve(ctx context.Context, op string, c driver.Config) (*pool, error) {
	d, err := t.attach(ctx, op, poolName, "", true, unattended) // when the cluster goes on, so does the pool
	if err != nil {
		return nil, t.full(ctx, op, t.where(), err)
	}
	err = t.onlyOne(ctx, op, d)
	if err == nil {
		err = d.touch()
	}
	if err == nil { // a holder that only seemed dead is seen now, if the write did not shut it out
		err = t.onlyOne(ctx, op, d)
	}
	if err != nil {
		_ = d.Close()
		return nil, failed(op, t.where(), err)
	}
	return &pool{tool: t, id: c.ID, served: d}, nil
}

// onlyOne returns errs.Busy if anybody but d has the marker's image open.
func (t *tool) onlyOne(ctx context.Context, op string, d *device) error {
	w, err := t.watchers(ctx, op, poolName)
	if err == nil && (len(w) != 1 || d.client != 0 && w[0].Client != d.client) {
		return errs.New(errs.Busy, op, t.where(), "another tarnd serves the pool %s (%v)", t.where(), watched(op, t.where(), w)).
			WithHint("one tarnd serves a pool: stop that one, or have it give the pool up with \"tarn pool stop\"; Ceph forgets one that died after 30 seconds")
	}
	if err == nil {
		d.client = w[0].Client
	}
	return err
}

// remove implements driver.Type.Remove.
func remove(ctx context.Context, c driver.Config) error {
	const op = "pool.remove"
	t, err := begin(ctx, op, c)
	if err != nil {
		return err
	}
	there, err := t.marked(ctx, op, c)
	if err != nil {
		return err
	}
	if there {
		if err := t.empty(ctx, op, c); err != nil {
			return failed(op, t.where(), err)
		}
		err = t.removeImage(ctx, op, poolName)
	}
	all, lerr := t.names(ctx, op)
	if errors.Is(lerr, errs.NotFound) {
		return nil // the Ceph pool is gone
	}
	if err == nil {
		err = lerr
	}
	if unfinished := newName + string(c.ID); err == nil && all[unfinished] {
		err = t.removeImage(ctx, op, unfinished)
	}
	return failed(op, t.where(), err)
}

// empty takes out what is staged, if the pool has no volumes. What was set aside
// stays: it is a person's to look at.
func (t *tool) empty(ctx context.Context, op string, c driver.Config) error {
	p, err := t.serve(ctx, op, c)
	if err != nil {
		return err
	}
	defer p.Close()
	for r, err := range p.Sidecars(ctx) {
		if err != nil {
			return err
		}
		return errs.New(errs.Conflict, op, t.where(), "the pool holds the volume %s", r.Name)
	}
	all, err := t.names(ctx, op)
	for n := range all {
		if err == nil && (strings.HasPrefix(n, stagedName) || strings.HasPrefix(n, partName)) {
			err = p.discard(ctx, op, n)
		}
	}
	return err
}
