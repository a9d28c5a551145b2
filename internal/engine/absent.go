package engine

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

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

// existing is the object that has the name which a request asks for.
type existing struct {
	subject journal.Subject
	differs string     // from what is asked for, if it does
	making  journal.ID // the operation that is still making it, if one is
}

// ifAbsent answers a request of kind to create what has name if it is absent,
// which failed with cause. What look finds of that name and shape is the
// request's, and so is the operation that is making it; another shape is
// errs.Exists, which tells the first difference. If nothing has the name the
// answer is cause.
func (e *Engine) ifAbsent(ctx context.Context, o api.Options, kind, name string, request any, cause error,
	look func(context.Context, *store.Tx) (existing, error)) (api.Outcome, error) {
	x, err := query(ctx, e, func(ctx context.Context, tx *store.Tx) (existing, error) {
		x, err := look(ctx, tx)
		if errors.Is(err, errs.NotFound) {
			x.making, err = madeBy(ctx, tx, kind, name)
		}
		return x, err
	})
	typ, _, _ := strings.Cut(kind, ".")
	switch {
	case err != nil:
		return api.Outcome{}, cause
	case x.differs != "":
		return api.Outcome{}, errs.New(errs.Exists, kind, name, "there is another %s %s: %s", typ, name, x.differs).
			WithHint("ask for what is there, or choose another name")
	case x.making == "":
		return e.present(ctx, o, kind, x.subject, request)
	}
	op, err := e.runner.Get(ctx, x.making)
	v := operationView(op)
	return api.Outcome{Operation: &v}, err
}

// madeBy returns the operation of kind that is making what has name.
func madeBy(ctx context.Context, tx *store.Tx, kind, name string) (journal.ID, error) {
	for _, s := range []journal.State{journal.Queued, journal.Running} {
		ops, _, err := tx.Operations.List(ctx, store.Query{Where: []store.Where{store.Eq("kind", kind), store.Eq("state", s)}})
		if err != nil {
			return "", err
		}
		for _, op := range ops {
			if op.Subject.Name == name {
				return op.ID, nil
			}
		}
	}
	return "", errs.New(errs.NotFound, kind, name, "nothing is making %s", name)
}

// property is one thing that a request may state of what it asks for.
type property struct{ what, want, have string }

// compare returns the first property that is stated and that is not so, or "".
func compare(all ...property) string {
	for _, x := range all {
		if x.want != "" && x.want != x.have {
			return fmt.Sprintf("the %s is %s, not %s", x.what, or(x.have, "none"), x.want)
		}
	}
	return ""
}

// sameInstance looks for the instance that r asks for.
func sameInstance(r api.InstanceCreate) func(context.Context, *store.Tx) (existing, error) {
	return func(ctx context.Context, tx *store.Tx) (x existing, err error) {
		i, err := tx.Instances.One(ctx, store.Eq("name", r.Name))
		if err != nil {
			return x, err
		}
		x.subject = instanceSubject(i)
		x.differs, x.making, err = compareInstance(ctx, tx, r, i)
		return x, err
	}
}

// samePool looks for the pool that r asks for.
func samePool(r api.PoolCreate) func(context.Context, *store.Tx) (existing, error) {
	return func(ctx context.Context, tx *store.Tx) (x existing, err error) {
		p, err := tx.Pools.One(ctx, store.Eq("name", r.Name))
		if err != nil {
			return x, err
		}
		d, err := tx.Domains.Get(ctx, p.DomainID)
		if err != nil {
			return x, err
		}
		x.subject = poolSubject(p)
		if p.State == disk.PoolCreating {
			x.making, err = madeBy(ctx, tx, "pool.create", r.Name)
		}
		if err == nil {
			x.differs, err = comparePool(r, p, d)
		}
		return x, err
	}
}

func comparePool(r api.PoolCreate, p disk.Pool, d disk.Domain) (string, error) {
	want := []property{{"driver", r.Driver, p.Driver}}
	asked := disk.Pool{Path: r.Path, Source: disk.PoolSource(r.Source)}
	for _, f := range disk.SourceFields() {
		v := *asked.Field(f)
		if v != "" {
			var err error
			if v, err = sourceValue(f, v); err != nil {
				return "", err
			}
		}
		want = append(want, property{strings.ReplaceAll(string(f), "-", " "), v, *p.Field(f)})
	}
	want = append(want, property{"disk format", r.DiskFormat, string(p.DiskFormat)})
	if len(r.ImageFormats) > 0 {
		have := slices.Clone(p.ImageFormats)
		asked, err := parseImageFormats(r.ImageFormats)
		if err != nil {
			return "", err
		}
		slices.Sort(have)
		slices.Sort(asked)
		want = append(want, property{"list of image formats", joined(asked), joined(have)})
	}
	if r.Owner != "" {
		owner, err := parseOwner(r.Owner)
		if err != nil {
			return "", err
		}
		want = append(want, property{"owner", fmt.Sprintf("%d:%d", owner.UID, owner.GID), fmt.Sprintf("%d:%d", p.Owner.UID, p.Owner.GID)})
	}
	if r.Overcommit != nil {
		over, err := parseOvercommit(*r.Overcommit)
		if err != nil {
			return "", err
		}
		want = append(want, property{"overcommit", fmt.Sprint(float64(over) / 1000), fmt.Sprint(float64(d.Overcommit) / 1000)})
	}
	if r.Reserve != "" {
		reserve, err := parseReserve(r.Reserve)
		if err != nil {
			return "", err
		}
		want = append(want, property{"reserve", reserveText(reserve), reserveText(d.Reserve)})
	}
	return compare(want...), nil
}

func reserveText(r disk.Reserve) string {
	return fmt.Sprintf("%d bytes and %g%%", r.Bytes, float64(r.Permille)/10)
}

// sameImage looks for the image that r asks for: of bytes that were imported
// the format and the digests are known.
func sameImage(r api.ImageImport) func(context.Context, *store.Tx) (existing, error) {
	return func(ctx context.Context, tx *store.Tx) (x existing, err error) {
		i, err := tx.Images.One(ctx, store.Eq("name", r.Name))
		if err != nil {
			return x, err
		}
		x.subject = imageSubject(i)
		if i.State != disk.ImageReady {
			x.differs = compare(property{"format", r.Format, string(i.Format)})
			x.making, err = madeBy(ctx, tx, "image.import", r.Name)
			return x, err
		}
		x.differs, err = compareImport(ctx, tx, r, i)
		return x, err
	}
}

func compareImport(ctx context.Context, tx *store.Tx, r api.ImageImport, i disk.Image) (string, error) {
	var proof disk.Proof
	if i.Proof != nil {
		proof = *i.Proof
	}
	sha512 := strings.ToLower(r.SHA512)
	checked := func(asked bool, have bool) string {
		if asked && !have {
			return "verified"
		}
		return ""
	}
	differs := compare(
		property{"format", r.Format, string(i.Format)},
		property{"SHA-256", strings.ToLower(r.SHA256), i.SourceSHA256},
		property{"SHA-512", checked(sha512 != "", slices.Contains(proof.Checksums, "sha512:"+sha512)), ""},
		property{"checksum", checked(len(r.Checksums) > 0 || r.ChecksumsURL != "", len(proof.Checksums) > 0), ""},
		property{"signature", checked(len(r.Signature)+len(r.SigningKey) > 0, proof.Signature != nil), ""},
	)
	if r.MinDisk > i.MinDisk && differs == "" {
		differs = fmt.Sprintf("its smallest root disk has %d bytes, not %d", i.MinDisk, r.MinDisk)
	}
	if r.Pool == "" || differs != "" {
		return differs, nil
	}
	p, err := findPool(ctx, tx, r.Pool)
	if err != nil {
		return "", err
	}
	b, err := baseIn(ctx, tx, p.ID, i.Content)
	if errors.Is(err, errs.NotFound) || err == nil && b.State != disk.VolumeReady {
		return "pool " + p.Name + " has no copy of it; tarn cache add makes one", nil
	}
	return "", err
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
	of := " of " + d.Name
	return compare(
		property{"role" + of, s.Role, string(d.Role)},
		property{"image" + of, image, d.Source.Image},
		property{"first content" + of, source.Kind, d.Source.Kind},
		property{"file system" + of, or(source.FS, "none"), or(d.Source.FS, "none")},
		property{"label" + of, or(source.Label, "none"), or(d.Source.Label, "none")},
		property{"size" + of, size, fmt.Sprint(v.RequestedSize)},
		property{"pool" + of, pool, r.pool.Name},
		property{"bus" + of, s.Bus, d.Bus},
		property{"format" + of, s.Format, string(v.Format)},
		property{"discard mode" + of, s.Discard, d.Discard},
		property{"cache mode" + of, s.Cache, d.Cache},
		property{"preallocation" + of, s.Prealloc, d.Prealloc},
	), nil
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
