package engine

import (
	"context"
	"errors"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/tarn-storage/tarn/api"
	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/disk"
	"github.com/tarn-storage/tarn/internal/pool/driver"
	"github.com/tarn-storage/tarn/internal/store"
)

// orderSource checks what a request says of a pool's storage against what the
// technology takes, and returns it with each field in its one form.
func orderSource(t driver.Type, path string, s api.PoolSource) (string, disk.PoolSource, error) {
	p := disk.Pool{Path: path, Source: disk.PoolSource(s)}
	for _, f := range disk.SourceFields() {
		v := p.Field(f)
		switch needed := slices.Contains(t.Needs, f); {
		case *v == "" && needed:
			return "", p.Source, errs.New(errs.Invalid, "pool.source", t.Name, "a pool of driver %s needs --%s", t.Name, f).
				WithHint("tarn pool capabilities %s says what it takes", t.Name)
		case *v == "":
			continue
		case !needed && !slices.Contains(t.Takes, f):
			return "", p.Source, errs.New(errs.Invalid, "pool.source", *v, "a pool of driver %s takes no --%s", t.Name, f).
				WithHint("tarn pool capabilities %s says what it takes", t.Name)
		}
		var err error
		if *v, err = sourceValue(f, *v); err != nil {
			return "", p.Source, err
		}
	}
	return p.Path, p.Source, nil
}

// sourceValue returns the one form of a field's value. What a person could not
// read back from a message or a listing is refused.
func sourceValue(f disk.SourceField, v string) (string, error) {
	if f == disk.FieldPath {
		return poolPath(v)
	}
	if !utf8.ValidString(v) || strings.ContainsFunc(v, unicode.IsControl) {
		return "", errs.New(errs.Invalid, "pool.source", strconv.Quote(v), "--%s cannot contain control characters, nor bytes that are not UTF-8", f)
	}
	switch f {
	case disk.FieldDevice, disk.FieldCephConf, disk.FieldSecretFile:
		if !filepath.IsAbs(v) {
			return "", errs.New(errs.Invalid, "pool.source", v, "--%s must be an absolute path", f)
		}
		return filepath.Clean(v), nil // and not where links lead: /dev/disk/by-id is the name that lasts
	}
	return v, nil
}

// poolPath returns the one form of a path that a request names. What a person
// could not read back from a message or a listing is refused.
func poolPath(path string) (string, error) {
	if !utf8.ValidString(path) || strings.ContainsFunc(path, unicode.IsControl) {
		return "", errs.New(errs.Invalid, "pool.path", strconv.Quote(path), "a pool's path cannot contain control characters, nor bytes that are not UTF-8").
			WithHint("rename the directory")
	}
	if path == "" || !filepath.IsAbs(path) {
		return "", errs.New(errs.Invalid, "pool.path", path, "a pool's path must be absolute").WithHint("for example --path /srv/tarn")
	}
	path = filepath.Clean(path)
	if parent, err := filepath.EvalSymlinks(filepath.Dir(path)); err == nil && path != "/" {
		path = filepath.Join(parent, filepath.Base(path)) // so that one directory has one path
	}
	return path, nil
}

// devices are the names of pools' devices, and where their links led when they
// were looked at: transactions do not wait for that.
type devices map[string]string

func devicesOf(pools ...disk.Pool) devices {
	all := devices{}
	for _, p := range pools {
		name := p.Source.Device
		all[name] = name
		if to, err := filepath.EvalSymlinks(name); err == nil && name != "" {
			all[name] = to
		}
	}
	return all
}

// storage returns what tells the storage of p, whose device is one of d, from
// others'.
func (d devices) storage(p disk.Pool) disk.PoolSource {
	s := p.Source.Storage()
	s.Device = d[s.Device]
	return s
}

// placesOf names the storage of p, so that one operation at a time takes it.
func placesOf(p disk.Pool) (places []string) {
	if p.Path != "" {
		places = append(places, "path:"+p.Path)
	}
	if s := devicesOf(p).storage(p); s != (disk.PoolSource{}) {
		places = append(places, "source:"+s.String())
	}
	return places
}

// submitApart submits d, which is to take the storage of p, unless another pool
// has that.
func (e *Engine) submitApart(ctx context.Context, o api.Options, d draft, p disk.Pool) (api.Outcome, error) {
	intent := d.intent
	for {
		_, seen, err := e.look(ctx, p)
		if err != nil {
			return api.Outcome{}, err
		}
		d.intent = func(ctx context.Context, tx *store.Tx) error {
			pools, _, err := tx.Pools.List(ctx, store.Query{})
			if err == nil {
				err = e.apart(p, pools, seen)
			}
			if err != nil {
				return err
			}
			return intent(ctx, tx)
		}
		if out, err := e.submit(ctx, o, d); !errors.Is(err, errUnseen) {
			return out, err
		}
	}
}

// look returns the pools on record, and their devices and that of p.
func (e *Engine) look(ctx context.Context, p disk.Pool) ([]disk.Pool, devices, error) {
	pools, err := query(ctx, e, func(ctx context.Context, tx *store.Tx) ([]disk.Pool, error) {
		pools, _, err := tx.Pools.List(ctx, store.Query{})
		return pools, err
	})
	return pools, devicesOf(append(slices.Clone(pools), p)...), err
}

// errUnseen says that a pool came whose device was not looked at.
var errUnseen = errors.New("a pool was recorded meanwhile")

// apart refuses storage that another pool of this host has, and a path that is,
// contains or lies in another pool's.
func (e *Engine) apart(p disk.Pool, pools []disk.Pool, seen devices) error {
	for _, other := range pools {
		if other.ID == p.ID || other.HostID != p.HostID {
			continue
		}
		if _, ok := seen[other.Source.Device]; !ok {
			return errUnseen
		}
		if err := distinct(p, other, seen); err != nil {
			return err
		}
	}
	if s := e.cfg.StateDir; s != "" && p.Path != "" && (within(p.Path, s) || within(s, p.Path)) {
		return errs.New(errs.Conflict, "pool.create", p.Path, "%s and the daemon's state directory %s would contain each other", p.Path, s)
	}
	return nil
}

// distinct refuses p beside other if they would share storage.
func distinct(p, other disk.Pool, seen devices) error {
	if s := seen.storage(p); s != (disk.PoolSource{}) && s == seen.storage(other) {
		return errs.New(errs.Exists, "pool.create", p.Source.String(), "%s is already pool %s", p.Source, other.Name)
	}
	switch {
	case p.Path == "" || other.Path == "":
	case p.Path == other.Path:
		return errs.New(errs.Exists, "pool.create", p.Path, "%s is already pool %s", p.Path, other.Name)
	case within(p.Path, other.Path) || within(other.Path, p.Path):
		return errs.New(errs.Conflict, "pool.create", p.Path, "%s and pool %s at %s would contain each other", p.Path, other.Name, other.Path)
	}
	return nil
}

// within reports whether path lies in dir, or is it.
func within(path, dir string) bool {
	return strings.HasPrefix(strings.TrimSuffix(path, "/")+"/", strings.TrimSuffix(dir, "/")+"/")
}
