package engine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sort"
	"strings"

	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/disk"
	"github.com/tarn-storage/tarn/internal/pool"
	"github.com/tarn-storage/tarn/internal/pool/driver"
)

// lookObject compares what lies in the pool with the record (I1, I2, I8, I14).
func (c *checkup) lookObject(ctx context.Context, a around, p *pool.Pool, first bool) ([]finding, error) {
	v := a.volume
	obj, err := p.Describe(ctx, pool.Ref(v))
	switch {
	case a.out():
		return c.lookOut(a, err), ctx.Err()
	case errors.Is(err, errs.NotFound):
		return []finding{c.gone(a)}, nil
	case errors.Is(err, errs.Corrupt), errors.Is(err, errs.Unsafe):
		f := found("I1", a.name(), "what lies in pool %s under the name of %s is not the volume that is on record: %v", a.pool.Name, a.name(), err)
		return []finding{c.exclude(f, a, disk.VolumeQuarantined)}, nil
	case err != nil:
		return nil, err
	}
	var fs []finding
	if f, err := c.lookSidecar(ctx, a, p); err != nil {
		return nil, err
	} else if f != nil {
		fs = append(fs, *f)
	}
	if a.lease != nil || c.e.exports.count(v.ID) > 0 {
		if first {
			c.inUse.Add(1)
		}
		return fs, nil
	}
	f, err := c.lookProtection(ctx, a, p)
	if err != nil {
		return nil, err
	}
	if f != nil {
		fs = append(fs, *f)
	}
	if f, err = c.lookContainer(ctx, a, p, obj, first); f != nil {
		fs = append(fs, *f)
	}
	return fs, err
}

// lookOut finds a lost volume whose bytes are there again, and one out of use
// whose bytes somebody has taken away: it is lost.
func (c *checkup) lookOut(a around, described error) []finding {
	switch lost := a.volume.State == disk.VolumeLost; {
	case !lost && errors.Is(described, errs.NotFound):
		return []finding{c.gone(a)}
	case !lost || described != nil:
		return nil
	}
	return []finding{found("I1", a.name(), "%s is recorded as lost, and its bytes are in pool %s again", a.name(), a.pool.Name).
		repair("takes it into use again", func(ctx context.Context) (string, error) {
			err := c.e.mark(ctx, a.volume, disk.VolumeReady)
			if err == nil {
				err = c.e.renewSidecar(ctx, a.volume.ID) // it was not written while the volume was lost
			}
			return "took it into use again", err
		})}
}

// lookSidecar compares what the sidecar says with the records (I14). A live
// database wins.
func (c *checkup) lookSidecar(ctx context.Context, a around, p *pool.Pool) (*finding, error) {
	got, err := p.SidecarOf(ctx, a.volume.Name)
	var f finding
	switch {
	case errors.Is(err, errs.Version):
		f = found("I13", a.name(), "the sidecar of %s was written by a newer tarn: %v", a.name(), err).advise("use the tarn that wrote it")
		return &f, nil
	case errors.Is(err, errs.NotFound):
		f = found("I14", a.name(), "%s has lost its sidecar", a.name())
	case errors.Is(err, errs.Corrupt):
		f = found("I14", a.name(), "the sidecar of %s cannot be read: %v", a.name(), err)
	case err != nil:
		return nil, err
	case sameSidecar(got, a.sidecar()):
		return nil, nil
	default:
		f = found("I14", a.name(), "the sidecar of %s says something else than the records: %s", a.name(), difference(described(got), described(a.sidecar())))
	}
	f = f.repair("rewrites the sidecar from the records", func(ctx context.Context) (string, error) {
		return "rewrote the sidecar from the records", c.e.renewSidecar(ctx, a.volume.ID)
	})
	return &f, nil
}

// lookProtection checks who may read and write a volume's bytes (I14).
func (c *checkup) lookProtection(ctx context.Context, a around, p *pool.Pool) (*finding, error) {
	pr, ok := p.Driver.(driver.Protector)
	if !ok {
		return nil, nil
	}
	base := a.volume.Kind == disk.KindBase
	wrong, err := pr.Exposure(ctx, pool.Ref(a.volume), base)
	if err != nil || wrong == "" {
		return nil, err
	}
	f := found("I14", a.name(), "others may reach the bytes of %s than should: %s", a.name(), wrong).
		repair("gives it back its owner and mode", func(ctx context.Context) (string, error) {
			return "gave it back its owner and mode", pr.Protect(ctx, pool.Ref(a.volume), base)
		})
	return &f, nil
}

// lookContainer compares the container of a volume that nobody has with its
// record (I2, I8).
func (c *checkup) lookContainer(ctx context.Context, a around, p *pool.Pool, obj driver.Object, first bool) (*finding, error) {
	if a.volume.Kind == disk.KindDisk {
		err := p.InUse(ctx, a.volume)
		if errors.Is(err, errs.Busy) {
			if first {
				c.inUse.Add(1)
			}
			f := found("I8", a.name(), "%s is attached to nothing on record, and %v", a.name(), message(err)).
				advise("stop that program, or let it go on and take the lease: tarn disk attach %s", a.name())
			return &f, nil
		}
		if err != nil {
			return nil, err
		}
	}
	err := p.Examine(ctx, a.volume, obj)
	if !errors.Is(err, errs.Corrupt) {
		return nil, err
	}
	f := c.exclude(found("I2", a.name(), "the bytes of %s contradict its record: %v", a.name(), message(err)), a, disk.VolumeCorrupt)
	return &f, nil
}

// message is what an error says without where it happened.
func message(err error) string {
	var e *errs.Error
	if errors.As(err, &e) {
		return e.Message
	}
	return err.Error()
}

// difference names, for a person, up to three fields in which two records differ.
func difference(got, want any) string {
	g, w := map[string]string{}, map[string]string{}
	flatten("", plainValue(got), g)
	flatten("", plainValue(want), w)
	names := map[string]bool{}
	for _, m := range []map[string]string{g, w} {
		for k := range m {
			if g[k] != w[k] {
				names[k] = true
			}
		}
	}
	var out []string
	for k := range names {
		out = append(out, fmt.Sprintf("%s is %s, on record is %s", k, orNothing(g[k]), orNothing(w[k])))
	}
	sort.Strings(out)
	if len(out) > 3 {
		out = append(out[:3], fmt.Sprintf("and %d more", len(names)-3))
	}
	return strings.Join(out, "; ")
}

func orNothing(s string) string {
	if s == "" {
		return "nothing"
	}
	return s
}

func plainValue(v any) (out any) {
	b, err := json.Marshal(v)
	if err == nil {
		err = json.Unmarshal(b, &out)
	}
	if err != nil {
		return nil
	}
	return out
}

func flatten(path string, v any, into map[string]string) {
	switch v := v.(type) {
	case map[string]any:
		for k, x := range v {
			flatten(strings.TrimPrefix(path+"."+k, "."), x, into)
		}
	case []any:
		for i, x := range v {
			flatten(fmt.Sprintf("%s[%d]", path, i), x, into)
		}
	default:
		b, _ := json.Marshal(v) // came from JSON
		into[path] = string(b)
	}
}
