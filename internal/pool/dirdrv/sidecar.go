package dirdrv

import (
	"context"
	"iter"
	"strings"

	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/pool/driver"
)

// PutSidecar implements driver.Driver: a temporary file, its sync, a rename,
// the directory's sync.
func (p *pool) PutSidecar(ctx context.Context, name string, data []byte) error {
	const op = "sidecar.put"
	if err := ctx.Err(); err != nil {
		return failed(op, name, err)
	}
	file := markerName
	if name != "" {
		if _, err := p.describe(op, driver.Ref{Name: name}); err != nil {
			return err
		}
		file = name + sidecarSuffix
	}
	if err := checkRecord(op, name, data); err != nil {
		return err
	}
	return failed(op, name, p.put(file, data))
}

func checkRecord(op, subject string, data []byte) error {
	if len(data) > maxRecord {
		return errs.New(errs.Invalid, op, subject, "%d bytes, at most %d are a record", len(data), maxRecord)
	}
	return nil
}

// Sidecar implements driver.Driver.
func (p *pool) Sidecar(ctx context.Context, name string) ([]byte, error) {
	const op = "sidecar.get"
	file := markerName
	if name != "" {
		if err := checkName(op, name); err != nil {
			return nil, err
		}
		file = name + sidecarSuffix
	}
	if err := ctx.Err(); err != nil {
		return nil, failed(op, name, err)
	}
	data, err := p.root.readFile(file)
	if name == "" {
		err = p.absent(err)
	}
	if isNotExist(err) {
		return nil, errs.New(errs.NotFound, op, name, "there is no %s", file)
	}
	return data, failed(op, name, err)
}

// put replaces a record at the pool's root.
func (p *pool) put(file string, data []byte) error {
	if err := p.tmp.writeFile(file, data); err != nil {
		return err
	}
	if err := p.tmp.rename(file, p.root, file); err != nil {
		_ = p.tmp.remove(file)
		return err
	}
	return p.root.sync()
}

// Sidecars implements driver.Driver.
func (p *pool) Sidecars(ctx context.Context) iter.Seq2[driver.Record, error] {
	return func(yield func(driver.Record, error) bool) {
		err := p.root.each(ctx, func(file string) bool {
			name, ok := strings.CutSuffix(file, sidecarSuffix)
			if !ok || checkName("", name) != nil {
				return true
			}
			data, err := p.root.readFile(file)
			if isNotExist(err) {
				return true // deleted meanwhile
			}
			return yield(driver.Record{Name: name, Data: data}, failed("pool.sidecars", name, err))
		})
		if err != nil {
			yield(driver.Record{}, failed("pool.sidecars", p.path, p.absent(err)))
		}
	}
}
