package engine

import (
	"context"
	"errors"
	"fmt"

	"github.com/tarn-storage/tarn/api"
	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/disk"
	"github.com/tarn-storage/tarn/internal/journal"
	"github.com/tarn-storage/tarn/internal/store"
)

// present answers a request for what is so already with an operation that does
// nothing and says so.
func (e *Engine) present(ctx context.Context, o api.Options, kind string, s journal.Subject, request any) (api.Outcome, error) {
	d := newDraft(kind, s)
	d.request, d.result = request, api.Unchanged{Unchanged: true}
	d.steps = []journal.Step{sidecarStep(nil)} // of nothing
	d.notes = []string{"it is so already: nothing is done"}
	return e.submit(ctx, o, d)
}

// ifAbsent answers a request to create an instance if it is absent, which
// failed with cause. One of that name and shape is the request's, and so is the
// operation that is making it; another shape is errs.Exists, which tells the
// first difference. Without such an instance the answer is cause.
func (e *Engine) ifAbsent(ctx context.Context, o api.Options, r, request api.InstanceCreate, cause error) (api.Outcome, error) {
	var i disk.Instance
	var making journal.ID
	var differs string
	err := e.store.View(ctx, func(ctx context.Context, tx *store.Tx) (err error) {
		if i, err = tx.Instances.One(ctx, store.Eq("name", r.Name)); err != nil {
			making, err = toAdd(ctx, tx, r.Name, err)
			return err
		}
		differs, making, err = compareInstance(ctx, tx, r, i)
		return err
	})
	switch {
	case err != nil:
		return api.Outcome{}, cause
	case differs != "":
		return api.Outcome{}, errs.New(errs.Exists, "instance.create", r.Name, "there is an instance %s of another shape: %s", r.Name, differs).
			WithHint("ask for what is there, or choose another name")
	case making == "":
		return e.present(ctx, o, "instance.create", instanceSubject(i), request)
	}
	op, err := e.runner.Get(ctx, making)
	v := operationView(op)
	return api.Outcome{Operation: &v}, err
}

// toAdd returns the operation that will add the instance of that name once it
// has fetched the bases, or missed.
func toAdd(ctx context.Context, tx *store.Tx, name string, missed error) (journal.ID, error) {
	for _, s := range []journal.State{journal.Queued, journal.Running} {
		ops, _, err := tx.Operations.List(ctx, store.Query{Where: []store.Where{store.Eq("kind", "instance.create"), store.Eq("state", s)}})
		if err != nil {
			return "", err
		}
		for _, op := range ops {
			if op.Subject.Name == name {
				return op.ID, nil
			}
		}
	}
	return "", missed
}

// compareInstance returns in which way instance i is not what r asks for, or "",
// and the operation that is still making a disk of it, if one is. What r leaves
// open may be anything.
func compareInstance(ctx context.Context, tx *store.Tx, r api.InstanceCreate, i disk.Instance) (differs string, making journal.ID, err error) {
	if r.ID != "" && r.ID != string(i.ID) {
		return "its id is " + string(i.ID), "", nil
	}
	specs := r.Disks
	var config *configRequest
	if r.ConfigDrive != nil {
		var spec api.DiskSpec
		if config, spec, _, err = configOrder(r.ConfigDrive, i); err != nil {
			return "", "", err
		}
		specs = append(specs[:len(specs):len(specs)], spec)
	}
	have, err := disksOf(ctx, tx, i.ID)
	if err != nil {
		return "", "", err
	}
	if len(have) != len(specs) {
		return fmt.Sprintf("it has %d disks, not %d", len(have), len(specs)), "", nil
	}
	for n, d := range have {
		rec, err := recordsOf(ctx, tx, d.VolumeID)
		if err != nil {
			return "", "", err
		}
		spec := specs[n]
		spec.Pool = or(spec.Pool, r.Pool)
		if differs, err := compareDisk(ctx, tx, spec, rec); differs != "" || err != nil {
			return differs, "", err
		}
		if config != nil && n == len(have)-1 && d.Source.Content != "sha256:"+config.Input.SHA256 {
			return "its config drive was made of other files", "", nil
		}
		if rec.volume.State == disk.VolumeCreating {
			making = journal.ID(rec.volume.CreatedBy)
		}
	}
	return "", making, nil
}

// compareDisk returns in which way a disk is not what s asks for, or "".
func compareDisk(ctx context.Context, tx *store.Tx, s api.DiskSpec, r diskRecords) (string, error) {
	d, v := r.disk, r.volume
	image, size, err := compareImage(ctx, tx, s, d)
	if err != nil {
		return "", err
	}
	source := disk.Source{Kind: d.Source.Kind, FS: d.Source.FS, Label: d.Source.Label}
	if s.Image == "" && s.Role != string(disk.RoleConfig) {
		g := generator(s, d.Index)
		source = disk.Source{Kind: string(g.Kind), FS: string(g.FS), Label: g.Label}
	}
	pool := s.Pool
	if pool == string(r.pool.ID) {
		pool = r.pool.Name
	}
	if s.Format == "auto" {
		s.Format = ""
	}
	for _, x := range []struct{ what, want, have string }{
		{"role", s.Role, string(d.Role)},
		{"image", image, d.Source.Image},
		{"first content", source.Kind, d.Source.Kind},
		{"file system", or(source.FS, "none"), or(d.Source.FS, "none")},
		{"label", or(source.Label, "none"), or(d.Source.Label, "none")},
		{"size", size, fmt.Sprint(v.RequestedSize)},
		{"pool", pool, r.pool.Name},
		{"bus", s.Bus, d.Bus},
		{"format", s.Format, string(v.Format)},
		{"discard mode", s.Discard, d.Discard},
		{"cache mode", s.Cache, d.Cache},
		{"preallocation", s.Prealloc, d.Prealloc},
	} {
		if x.want != "" && x.want != x.have {
			return fmt.Sprintf("the %s of %s is %s, not %s", x.what, d.Name, or(x.have, "none"), x.want), nil
		}
	}
	return "", nil
}

// compareImage returns the name that d's image has on record if it has the
// content of the one that s means, else another, and the size that s asks for. An
// image that was deleted since is known by the name or id it had.
func compareImage(ctx context.Context, tx *store.Tx, s api.DiskSpec, d disk.Disk) (name, size string, err error) {
	if s.Size != 0 {
		size = fmt.Sprint(s.Size)
	}
	if s.Image == "" {
		return "", size, nil
	}
	i, err := findImage(ctx, tx, s.Image)
	switch {
	case errors.Is(err, errs.NotFound):
		if s.Image == string(d.Source.ImageID) {
			return d.Source.Image, size, nil
		}
		return s.Image, size, nil
	case err != nil:
		return "", "", err
	}
	if size == "" {
		size = fmt.Sprint(max(i.VirtualSize, i.MinDisk))
	}
	switch {
	case i.Content == d.Source.Content:
		return d.Source.Image, size, nil
	case i.Name == d.Source.Image:
		return "today's " + i.Name, size, nil
	}
	return i.Name, size, nil
}
