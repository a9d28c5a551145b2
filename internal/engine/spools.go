package engine

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"strconv"
	"sync"

	"github.com/tarn-storage/tarn/api"
	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/disk"
	"github.com/tarn-storage/tarn/internal/generate"
	"github.com/tarn-storage/tarn/internal/journal"
	"github.com/tarn-storage/tarn/internal/pool"
	"github.com/tarn-storage/tarn/internal/pool/driver"
	"github.com/tarn-storage/tarn/internal/store"
)

// spools holds the input of config drives between the request and the step
// that spools it: user data may be secret and enters neither journal nor
// database. Its zero value is ready.
type spools struct {
	mu sync.Mutex
	of map[journal.ID][]byte
}

func (s *spools) put(id journal.ID, data []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.of == nil {
		s.of = map[journal.ID][]byte{}
	}
	s.of[id] = data
}

func (s *spools) get(id journal.ID) ([]byte, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	b, ok := s.of[id]
	return b, ok
}

func (s *spools) drop(id journal.ID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.of, id)
}

func itoa(n int) string { return strconv.Itoa(n) }

// spoolID is the staged id under which the input of volume id's config drive
// waits.
func spoolID(id disk.VolumeID) disk.VolumeID { return id + ".input" }

// configOrder turns the files of a config drive into a disk to make, and the
// archive that will be spooled for it.
func configOrder(c *api.ConfigDrive, i disk.Instance) (*configRequest, api.DiskSpec, []byte, error) {
	spec := api.DiskSpec{Role: string(disk.RoleConfig), Pool: c.Pool, Bus: c.Bus, Format: "raw"}
	entries, err := configEntries(c, i)
	if err != nil {
		return nil, spec, nil, err
	}
	size, err := generate.Size(entries)
	if err != nil {
		return nil, spec, nil, err
	}
	spec.Size = size
	var b bytes.Buffer
	if err := generate.WriteSpool(&b, entries); err != nil {
		return nil, spec, nil, err
	}
	sum := sha256.Sum256(b.Bytes())
	return &configRequest{Kind: c.Kind, Input: generate.Input{SHA256: hex.EncodeToString(sum[:]), Size: int64(b.Len())}}, spec, b.Bytes(), nil
}

func configEntry(f api.ConfigFile) generate.Entry {
	return generate.Entry{Path: f.Path, Dir: f.Dir, Content: f.Data}
}

func configEntries(c *api.ConfigDrive, i disk.Instance) ([]generate.Entry, error) {
	byName := map[string][]byte{}
	var entries []generate.Entry
	for _, f := range c.Files {
		byName[f.Path] = f.Data
		entries = append(entries, configEntry(f))
	}
	switch c.Kind {
	case generate.LabelOpenStack:
		return entries, nil
	case generate.LabelNoCloud:
		meta := byName["meta-data"]
		if meta == nil {
			meta = generate.MetaData(string(i.ID), i.Name)
		}
		return generate.NoCloud(byName["user-data"], meta, byName["network-config"]), nil
	}
	return nil, errs.New(errs.Invalid, "disk.create", c.Kind, "%q is no kind of config drive", c.Kind).WithHint("use config-2 or cidata")
}

// spoolArgs is what the spooling step needs.
type spoolArgs struct {
	Volume disk.VolumeID  `json:"volume"`
	Pool   disk.PoolID    `json:"pool"`
	Input  generate.Input `json:"input"`
}

const spoolStep = "config.spool/v1"

// spooled returns what the operation's spooling step keeps.
func (e *Engine) spooled(c *journal.Call) (generate.Input, error) {
	for _, s := range c.Op.Steps {
		if s.Kind == spoolStep {
			var a spoolArgs
			step := journal.Call{Op: c.Op, Step: &s}
			err := step.Args(&a)
			return a.Input, err
		}
	}
	return generate.Input{}, errs.New(errs.Internal, "disk.create", string(c.Op.ID), "the config drive's input was not spooled")
}

// configSpool keeps a config drive's input in the pool, readable by its owner
// only, until the drive is made: step config.spool/v1. The input of an
// unfinished spooling died with the daemon that had it.
func (e *Engine) configSpool() journal.Handler[*store.Tx] {
	return lost{simple{
		act: func(ctx context.Context, c *journal.Call) error {
			var a spoolArgs
			if err := c.Args(&a); err != nil {
				return err
			}
			data, ok := e.configs.get(c.Op.ID)
			if !ok {
				return errs.New(errs.Cancelled, "disk.create", string(c.Op.ID), "the config drive's input was lost with a restart").WithHint("ask again")
			}
			p, err := e.poolOf(ctx, a.Pool)
			if err != nil {
				return err
			}
			return e.spool(ctx, p, a, data)
		},
		undo:       func(ctx context.Context, c *journal.Call) error { return e.unspool(ctx, c) },
		undoCommit: e.forgetUnmade,
	}}
}

func (e *Engine) spool(ctx context.Context, p *pool.Pool, a spoolArgs, data []byte) error {
	id := spoolID(a.Volume)
	if err := p.Driver.Create(ctx, driver.Spec{ID: id, Size: disk.RoundUp(int64(len(data)), p.Caps.SizeUnit)}); err != nil {
		return err
	}
	dev, err := p.Driver.Open(ctx, driver.Ref{ID: id}, driver.Staged)
	if err != nil {
		return err
	}
	_, err = io.Copy(io.NewOffsetWriter(dev, 0), bytes.NewReader(data))
	if err == nil {
		err = dev.Sync()
	}
	return errors.Join(err, dev.Close())
}

// unspool removes the input of a config drive: when the drive is made, or was
// given up.
func (e *Engine) unspool(ctx context.Context, c *journal.Call) error {
	var a spoolArgs
	if err := c.Args(&a); err != nil {
		return err
	}
	p, err := e.poolOf(ctx, a.Pool)
	if err != nil {
		return err
	}
	return p.Driver.Delete(ctx, driver.Ref{ID: spoolID(a.Volume)})
}
