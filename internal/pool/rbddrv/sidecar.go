package rbddrv

import (
	"context"
	"encoding/base64"
	"errors"
	"iter"
	"slices"
	"strings"

	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/pool/driver"
)

// A record in image metadata is "1:ID:BASE64": the version of this layout, the
// id of the image that it is about, and the bytes. A clone carries its parent's,
// which the id tells, until it gets its own.
const layout = "1"

func encodeRecord(id string, data []byte) string {
	return layout + ":" + id + ":" + base64.StdEncoding.EncodeToString(data)
}

// decodeRecord returns the bytes of a record about the image id; own is false
// for one that is another image's.
func decodeRecord(op, subject, id, value string) (data []byte, own bool, err error) {
	version, rest, _ := strings.Cut(strings.TrimSuffix(value, "\n"), ":")
	if version != layout {
		return nil, false, errs.New(errs.Version, op, subject, "a newer tarn wrote the record: its layout is %.20q", version)
	}
	about, coded, _ := strings.Cut(rest, ":")
	if about != id {
		return nil, false, nil
	}
	data, err = base64.StdEncoding.Strict().DecodeString(coded)
	if err != nil {
		return nil, false, errs.New(errs.Corrupt, op, subject, "the record cannot be read: %w", err)
	}
	return data, true, nil
}

// setRecord stores a record of the image id in its metadata.
func (t *tool) setRecord(ctx context.Context, op, name, id, key string, data []byte) error {
	return t.do(ctx, op, name, words("image-meta", "set", key, encodeRecord(id, data)))
}

// record returns the image's own record, or errs.NotFound.
func (t *tool) record(ctx context.Context, op, name, id, key string) ([]byte, error) {
	value, err := t.metadata(ctx, op, name, id, key)
	if err != nil {
		return nil, err
	}
	data, own, err := decodeRecord(op, name, id, value)
	if err == nil && !own {
		err = errs.New(errs.NotFound, op, name, "the image has the record of another, whose clone it is")
	}
	return data, err
}

// metadata reads one value of the image's metadata where librbd keeps it, in the
// map of its header. "rbd image-meta get" opens the image, and with that is one
// of those who have it open, and waits for as long as the Ceph pool is full.
func (t *tool) metadata(ctx context.Context, op, name, id, key string) (string, error) {
	header, key := "rbd_header."+id, "metadata_"+key
	value, err := t.rados(ctx, op, name, true, "getomapval", header, key, "/dev/stdout")
	if !errors.Is(err, errs.Internal) {
		return value, err
	}
	if all, lerr := t.rados(ctx, op, name, true, "listomapkeys", header); lerr == nil && !slices.Contains(strings.Split(all, "\n"), key) {
		return "", errs.New(errs.NotFound, op, name, "the image has no %s in its metadata", key)
	}
	if _, ierr := t.info(ctx, name); ierr != nil {
		return "", failed(op, name, ierr)
	}
	return "", err
}

// PutSidecar implements driver.Driver.
func (p *pool) PutSidecar(ctx context.Context, name string, data []byte) error {
	const op = "sidecar.put"
	at, word := poolName, markerKey
	if name != "" {
		at, word = name, sidecarKey
		if err := checkName(op, name); err != nil {
			return err
		}
	}
	if err := checkRecord(op, name, data); err != nil {
		return err
	}
	if err := p.here(ctx, op, name); err != nil {
		return err
	}
	i, err := p.info(ctx, at)
	if err != nil {
		return missing(op, driver.Ref{Name: name}, p.absent(ctx, err))
	}
	if err := p.serving(ctx, op, name); err != nil {
		return err
	}
	k := key{p.id, i.ID}
	defer enter(k).leave(k)
	return p.setRecord(ctx, op, at, i.ID, word, data)
}

// Sidecar implements driver.Driver.
func (p *pool) Sidecar(ctx context.Context, name string) ([]byte, error) {
	const op = "sidecar.get"
	at, word := poolName, markerKey
	if name != "" {
		at, word = name, sidecarKey
		if err := checkName(op, name); err != nil {
			return nil, err
		}
	}
	if err := p.here(ctx, op, name); err != nil {
		return nil, err
	}
	i, err := p.info(ctx, at)
	if err != nil {
		return nil, failed(op, name, p.absent(ctx, err))
	}
	return p.record(ctx, op, at, i.ID, word)
}

// Sidecars implements driver.Driver.
func (p *pool) Sidecars(ctx context.Context) iter.Seq2[driver.Record, error] {
	const op = "pool.sidecars"
	return func(yield func(driver.Record, error) bool) {
		all, err := p.images(ctx, op)
		if err != nil {
			yield(driver.Record{}, err)
			return
		}
		for _, i := range all {
			if strings.HasPrefix(i.Name, ours) || checkName(op, i.Name) != nil {
				continue
			}
			data, err := p.record(ctx, op, i.Name, i.ID, sidecarKey)
			if errors.Is(err, errs.NotFound) {
				continue // foreign, or deleted meanwhile
			}
			if !yield(driver.Record{Name: i.Name, Data: data}, err) {
				return
			}
		}
	}
}
