package generate

import (
	"archive/tar"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/tarn-storage/tarn/errs"
)

// MaxSpool bounds the bytes of a spooled archive: its content, and for each
// entry up to five tar blocks of headers and padding.
const MaxSpool = MaxContent + MaxEntries*5*512 + 64<<10

// WriteSpool writes entries, which it checks first, as the archive that
// ReadSpool takes: a tar stream, the same bytes for the same entries.
func WriteSpool(w io.Writer, entries []Entry) error {
	if _, err := newTree(entries); err != nil {
		return err
	}
	tw := tar.NewWriter(w)
	for _, e := range entries {
		h := &tar.Header{Typeflag: tar.TypeReg, Name: e.Path, Mode: int64(e.Mode), Size: int64(len(e.Content))}
		if e.Dir {
			h.Typeflag, h.Name = tar.TypeDir, e.Path+"/"
		}
		if err := tw.WriteHeader(h); err != nil {
			return fmt.Errorf("write the entry %q: %w", e.Path, err)
		}
		if _, err := tw.Write(e.Content); err != nil {
			return fmt.Errorf("write the entry %q: %w", e.Path, err)
		}
	}
	return tw.Close()
}

// ReadSpool reads a tar stream of regular files and directories, strictly:
// any other type of entry, a path given twice, one that is not clean and
// relative, or more than the bounds is errs.Invalid. Of what tar can say about
// an entry only path, permission bits and content are kept. It reads nothing
// behind the archive's end.
func ReadSpool(r io.Reader) ([]Entry, error) {
	tr := tar.NewReader(io.LimitReader(r, MaxSpool))
	var entries []Entry
	room := int64(MaxContent)
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, unreadable(err)
		}
		e := Entry{Path: h.Name, Mode: uint32(h.Mode & 0o777)}
		switch h.Typeflag {
		case tar.TypeReg:
		case tar.TypeDir:
			e.Dir, e.Path = true, strings.TrimSuffix(h.Name, "/")
		default:
			return nil, invalid("the entry %q is neither a regular file nor a directory", h.Name)
		}
		if len(entries) == MaxEntries {
			return nil, invalid("there are more than %d files and directories", MaxEntries)
		}
		if room -= h.Size; room < 0 {
			return nil, invalid("the files have more than %d bytes together", MaxContent)
		}
		if e.Content, err = io.ReadAll(tr); err != nil {
			return nil, unreadable(err)
		}
		entries = append(entries, e)
	}
	if _, err := newTree(entries); err != nil {
		return nil, err
	}
	return entries, nil
}

// unreadable tells a broken archive from a source that failed or was
// cancelled, whose kind it keeps.
func unreadable(err error) error {
	if errors.Is(err, tar.ErrHeader) || errors.Is(err, tar.ErrFieldTooLong) || errors.Is(err, io.ErrUnexpectedEOF) {
		return invalid("the archive is not a tar stream or ends early: %w", err)
	}
	return errs.Wrap(err, op, "")
}

func (in *Input) check() error {
	if in == nil || in.ID == "" {
		return invalid("a config drive needs its spooled input")
	}
	if b, err := hex.DecodeString(in.SHA256); err != nil || len(b) != sha256.Size {
		return invalid("the input's SHA-256 %q is not 64 hexadecimal digits", in.SHA256)
	}
	if in.Size < 0 || in.Size > MaxSpool {
		return invalid("the input of %d bytes is larger than %d", in.Size, MaxSpool)
	}
	return nil
}

// read returns the entries of r, once its size and digest are those of in.
func (in *Input) read(r io.Reader) ([]Entry, error) {
	h := sha256.New()
	all := io.TeeReader(io.LimitReader(r, in.Size+1), h)
	entries, err := ReadSpool(all)
	if _, err := io.Copy(io.Discard, all); err != nil {
		return nil, err
	}
	if sum := hex.EncodeToString(h.Sum(nil)); !strings.EqualFold(sum, in.SHA256) {
		return nil, errs.New(errs.Corrupt, op, in.ID, "the spooled input has the digest %s, recorded is %s", sum, in.SHA256)
	}
	return entries, err
}
