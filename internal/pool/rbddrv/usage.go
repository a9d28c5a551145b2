package rbddrv

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"
	"time"

	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/disk"
	"github.com/tarn-storage/tarn/internal/hostexec"
	"github.com/tarn-storage/tarn/internal/pool/driver"
)

// used is what an image takes, as rbd's "du" tells: without its snapshots in a
// row of its own.
type used struct {
	Name        string `json:"name"`
	ID          string `json:"id"`
	Snapshot    string `json:"snapshot"`
	Provisioned int64  `json:"provisioned_size"`
	Used        int64  `json:"used_size"`
}

// objects adds the rows of each image up, in their order.
func objects(rows []used) (all []driver.Object) {
	at := map[string]int{}
	for _, r := range rows {
		i, there := at[r.ID]
		if !there {
			i = len(all)
			at[r.ID] = i
			all = append(all, driver.Object{Name: r.Name, BackendID: r.ID})
		}
		all[i].Allocated += r.Used
		if r.Snapshot == "" {
			all[i].Size = r.Provisioned
		}
	}
	return all
}

// measuring is how long the cluster may take to tell what images take.
const measuring = 5 * time.Second

// usage asks what an image takes, or with an empty name every one. Images without
// a valid fast-diff have each of their objects looked for, which takes minutes a
// terabyte: what is not told in time is errs.Unavailable.
func (p *pool) usage(ctx context.Context, op, name string) ([]driver.Object, error) {
	var report struct {
		Images []used `json:"images"`
	}
	ctx, cancel := context.WithTimeout(ctx, measuring)
	defer cancel()
	err := p.query(ctx, op, name, call{words: words("du"), image: name}, &report)
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		err = errs.New(errs.Unavailable, op, name, "the cluster did not tell within %v what the images take", measuring)
	}
	return objects(report.Images), err
}

// object is the image i as the contract has it. An image whose cluster cannot
// tell quickly what it takes has all of its size for that.
func (p *pool) object(ctx context.Context, op, name string, i image) driver.Object {
	o := driver.Object{Name: name, BackendID: i.ID, Size: i.Size, Allocated: i.Size}
	if n, known := p.takes(ctx, op, name, i); known {
		o.Allocated = n
	}
	return o
}

// takes returns what the image takes, if the cluster can tell quickly.
func (p *pool) takes(ctx context.Context, op, name string, i image) (n int64, known bool) {
	if !slices.Contains(i.Features, "fast-diff") || slices.Contains(i.Flags, "fast diff invalid") {
		return 0, false
	}
	all, err := p.usage(ctx, op, name)
	if err != nil || len(all) != 1 {
		return 0, false
	}
	return all[0].Allocated, true
}

// listed is an image as a listing tells it.
type listed struct {
	Name     string `json:"image"`
	ID       string `json:"id"`
	Snapshot string `json:"snapshot"`
	Size     int64  `json:"size"`
}

// images lists every image.
func (p *pool) images(ctx context.Context, op string) (all []listed, err error) {
	if err := p.here(ctx, op, p.where()); err != nil {
		return nil, err
	}
	var rows []listed
	if err := p.query(ctx, op, p.where(), call{words: words("ls"), options: []hostexec.Option{hostexec.Flag("--long")}}, &rows); err != nil {
		return nil, p.absent(ctx, err)
	}
	for _, r := range rows {
		if r.Snapshot == "" {
			all = append(all, r)
		}
	}
	return all, nil
}

// names lists the names of all images.
func (t *tool) names(ctx context.Context, op string) (map[string]bool, error) {
	var all []string
	err := t.query(ctx, op, t.where(), call{words: words("ls")}, &all)
	set := make(map[string]bool, len(all))
	for _, n := range all {
		set[n] = true
	}
	return set, err
}

// List implements driver.Driver. It does not ask what each image takes, which may
// be any number and foreign: that is all of their size here.
func (p *pool) List(ctx context.Context) iter.Seq2[driver.Object, error] {
	const op = "pool.list"
	return func(yield func(driver.Object, error) bool) {
		all, err := p.images(ctx, op)
		if err != nil {
			yield(driver.Object{}, failed(op, p.where(), err))
			return
		}
		for _, i := range all {
			if !strings.HasPrefix(i.Name, ours) && !yield(driver.Object{Name: i.Name, BackendID: i.ID, Size: i.Size, Allocated: i.Size}, nil) {
				return
			}
		}
	}
}

// Physical implements driver.Physical. Where images that the cluster cannot
// measure quickly are in the way, foreign ones perhaps, it asks for each of the
// pool's own; what such a one takes counts as others'.
func (p *pool) Physical(ctx context.Context) (total int64, err error) {
	const op = "pool.physical"
	mine := map[string]bool{}
	for r, err := range p.Sidecars(ctx) {
		if err != nil {
			return 0, failed(op, p.where(), err)
		}
		mine[r.Name] = true
	}
	all, err := p.usage(ctx, op, "")
	for _, o := range all {
		if mine[o.Name] || strings.HasPrefix(o.Name, ours) {
			total += o.Allocated
		}
	}
	if errors.Is(err, errs.Unavailable) && ctx.Err() == nil {
		total, err = p.physicalOfEach(ctx, op, mine)
	}
	return total, failed(op, p.where(), err)
}

func (p *pool) physicalOfEach(ctx context.Context, op string, mine map[string]bool) (total int64, err error) {
	all, err := p.names(ctx, op)
	for name := range all {
		if err != nil || !mine[name] && !strings.HasPrefix(name, ours) {
			continue
		}
		i, ierr := p.info(ctx, name)
		if err = ignoring(errs.NotFound, ierr); ierr == nil {
			n, _ := p.takes(ctx, op, name, i)
			total += n
		}
	}
	return total, err
}

// Staged implements driver.Leftovers.
func (p *pool) Staged(ctx context.Context) iter.Seq2[disk.VolumeID, error] {
	const op = "pool.staged"
	return func(yield func(disk.VolumeID, error) bool) {
		err := p.here(ctx, op, p.where())
		var all map[string]bool
		if err == nil {
			all, err = p.names(ctx, op)
		}
		if err != nil {
			yield("", failed(op, p.where(), p.absent(ctx, err)))
			return
		}
		for n := range all {
			id, staged := strings.CutPrefix(n, stagedName)
			part, made := strings.CutPrefix(n, partName)
			switch {
			case made && !all[stagedName+part]:
				id = part
			case !staged:
				continue
			}
			if !yield(disk.VolumeID(id), nil) {
				return
			}
		}
	}
}

// SetAside implements driver.Leftovers.
func (p *pool) SetAside(ctx context.Context, r driver.Ref) error {
	const op = "volume.aside"
	name, i, err := p.find(ctx, op, r)
	if err == nil {
		err = p.serving(ctx, op, subject(r))
	}
	if err == nil {
		err = p.rename(ctx, op, name, asideName+i.ID)
	}
	return ignoring(errs.NotFound, err)
}

// space is what Ceph's "df detail" says of a pool.
type space struct {
	Name  string `json:"name"`
	ID    int64  `json:"id"`
	Stats struct {
		Stored int64 `json:"stored"`
		Free   int64 `json:"max_avail"`
		Quota  int64 `json:"quota_bytes"` // 0: none
	} `json:"stats"`
}

// Stat implements driver.Driver. Free is what Ceph says a client may still
// store, copies and the full mark considered, and not more than the pool's quota
// leaves.
func (p *pool) Stat(ctx context.Context) (driver.Usage, error) {
	const op = "pool.stat"
	if err := p.here(ctx, op, p.where()); err != nil {
		return driver.Usage{}, err
	}
	fsid, err := p.cluster(ctx, op)
	if err != nil {
		return driver.Usage{}, err
	}
	s, err := p.space(ctx, op)
	if err != nil {
		return driver.Usage{}, err
	}
	return p.measured(ctx, op, fsid, s)
}

// space asks how much the Ceph pool has.
func (t *tool) space(ctx context.Context, op string) (space, error) {
	var report struct {
		Pools []space `json:"pools"`
	}
	if err := t.ask(ctx, op, &report, "df", "detail"); err != nil {
		return space{}, err
	}
	for _, s := range report.Pools {
		if s.Name == t.ceph {
			return s, nil
		}
	}
	return space{}, errs.New(errs.Unavailable, op, t.where(), "the cluster has no pool %s", t.ceph)
}

// bounds returns how much fits into the pool and how much of that is free.
func (s space) bounds() (capacity, free int64) {
	capacity, free = s.Stats.Stored+s.Stats.Free, s.Stats.Free
	if q := s.Stats.Quota; q > 0 && q < capacity {
		capacity, free = q, min(free, max(0, q-s.Stats.Stored))
	}
	return capacity, free
}

// full words the failure of what had to write to a full Ceph pool: Ceph lets it
// wait for room until it gives up.
func (t *tool) full(ctx context.Context, op, subject string, err error) error {
	if !errors.Is(err, errs.Unavailable) {
		return err
	}
	s, serr := t.space(ctx, op)
	if capacity, free := s.bounds(); serr == nil && free == 0 {
		return errs.New(errs.NoSpace, op, subject, "the Ceph pool %s is full, with %d of %d bytes free: %w", t.where(), free, capacity, err).
			WithHint("delete what is not needed, which works, or raise the pool's quota (\"ceph osd pool set-quota %s max_bytes\")", t.ceph)
	}
	return err
}

func (p *pool) measured(ctx context.Context, op, fsid string, s space) (driver.Usage, error) {
	if err := p.serving(ctx, op, p.where()); err != nil {
		return driver.Usage{}, err
	}
	u := driver.Usage{Identity: fmt.Sprintf("ceph:%s/%s", fsid, s.Name), Storage: fmt.Sprintf("ceph:%s/id:%d", fsid, s.ID)}
	u.Capacity, u.Free = s.bounds()
	if p.namespace != "" {
		u.Storage += "/" + p.namespace
	}
	return u, nil
}

// cluster returns the cluster's id, which never changes.
func (p *pool) cluster(ctx context.Context, op string) (string, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.fsid == "" {
		var report struct {
			FSID string `json:"fsid"`
		}
		if err := p.ask(ctx, op, &report, "fsid"); err != nil {
			return "", err
		}
		p.fsid = report.FSID
	}
	return p.fsid, nil
}

// ask has the cluster report into v.
func (t *tool) ask(ctx context.Context, op string, v any, w ...string) error {
	parent := ctx
	ctx, cancel := context.WithTimeout(ctx, 2*patience)
	defer cancel()
	out, err := hostexec.Run(ctx, hostexec.Call{Program: hostexec.Ceph, Query: true, Output: maxReport,
		Options: append(t.access(), hostexec.Joined("--format", hostexec.Word("json"))), Operands: words(w...)})
	switch {
	case err != nil && ctx.Err() != nil && parent.Err() == nil:
		return errs.New(errs.Unavailable, op, t.where(), "the Ceph cluster of pool %s does not answer", t.where())
	case err != nil:
		return t.failure(op, t.where(), err)
	}
	if err := json.Unmarshal([]byte(out.Stdout), v); err != nil {
		return errs.New(errs.Internal, op, t.where(), "ceph's report cannot be read: %w", err)
	}
	return nil
}
