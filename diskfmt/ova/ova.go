// Package ova finds the one disk in an OVA: a tar archive that begins with a
// description in XML (DMTF DSP0243, "Open Virtualization Format"). It refuses
// everything that such an archive need not have: links, devices, paths, a name
// given twice, a description with a document type, more than one disk. It
// extracts nothing and returns no name of the archive's.
package ova

import (
	"archive/tar"
	"context"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"hash"
	"io"
	"regexp"
	"strings"

	"github.com/tarn-storage/tarn/diskfmt/strict"
)

// Bounds of an archive.
const (
	maxMembers     = 64
	maxName        = 255
	maxDescription = 1 << 20
	maxPadding     = 16 << 20 // behind the end; tar writes less than one of its blocks
)

// Disk is where an archive's disk lies and what its description says of it.
type Disk struct {
	Format   string // vmdk, vhd, qcow2 or raw, as --format has them
	Offset   int64  // of the disk's first byte in the archive
	Size     int64  // bytes
	Features []string
	sums     []sum

	capacity, unit int64 // as the description has it, in units of so many bytes; 0: it does not
}

// sum is what a manifest says of the disk.
type sum struct {
	make func() hash.Hash
	want []byte
}

// member is a file in the archive.
type member struct{ offset, size int64 }

// Open finds the disk in the archive of size bytes that r reads. The errors are
// errs.Unsafe with a class. Only headers, the description and the manifest are
// read: Check compares the disk's bytes with the manifest.
func Open(r io.ReaderAt, size int64) (Disk, error) {
	members, order, err := list(r, size)
	if err != nil {
		return Disk{}, err
	}
	first := order[0]
	if !strings.HasSuffix(first, ".ovf") {
		return Disk{}, strict.Refuse(strict.Mismatch, "the archive does not begin with a description in OVF").
			WithHint("an OVA is a tar archive whose first member ends in .ovf; unpack other archives and import the disk")
	}
	text, err := small(r, members[first], "the description")
	if err != nil {
		return Disk{}, err
	}
	disk, file, err := describe(text)
	if err != nil {
		return Disk{}, err
	}
	m, ok := members[file.name]
	if !ok {
		return Disk{}, strict.Refuse(strict.External, "the disk that the description names is not in the archive")
	}
	if file.size != 0 && file.size != m.size {
		return Disk{}, strict.Refuse(strict.Corrupt, "the disk has %d bytes, the description says %d", m.size, file.size)
	}
	disk.Offset, disk.Size = m.offset, m.size
	if m, ok := members[strings.TrimSuffix(first, ".ovf")+".mf"]; ok {
		manifest, err := small(r, m, "the manifest")
		if err != nil {
			return Disk{}, err
		}
		return disk, disk.manifest(manifest, members, first, text, file.name)
	}
	return disk, nil
}

// safeName is what a member may be called: the only shape that is one path
// component for everybody.
var safeName = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9 ._@+()-]*$`)

// list reads the headers of all members.
func list(r io.ReaderAt, size int64) (map[string]member, []string, error) {
	section := io.NewSectionReader(r, 0, size)
	t := tar.NewReader(section)
	members, order := map[string]member{}, []string(nil)
	for {
		h, err := t.Next()
		at, _ := section.Seek(0, io.SeekCurrent)
		switch {
		case err == io.EOF && len(order) == 0:
			return nil, nil, strict.Refuse(strict.Empty, "the archive has no members")
		case err == io.EOF:
			return members, order, padding(r, at, size)
		case err == io.ErrUnexpectedEOF:
			return nil, nil, strict.Refuse(strict.Truncated, "the archive ends inside a member's header")
		case err != nil:
			if len(order) == 0 {
				return nil, nil, strict.Refuse(strict.Mismatch, "the bytes are no tar archive: %v", err)
			}
			return nil, nil, strict.Refuse(strict.Corrupt, "the archive's member %d: %v", len(order)+1, err)
		case len(order) == maxMembers:
			return nil, nil, strict.Refuse(strict.Limit, "the archive has more than %d members", maxMembers)
		case h.Typeflag != tar.TypeReg || len(h.PAXRecords["GNU.sparse.major"]) > 0 || h.PAXRecords["GNU.sparse.map"] != "":
			return nil, nil, strict.Refuse(strict.UnsafeTar, "the archive's member %d at 0x%x is no plain file", len(order)+1, at)
		case len(h.Name) > maxName || !safeName.MatchString(h.Name):
			return nil, nil, strict.Refuse(strict.UnsafeTar, "the archive's member %d at 0x%x has a name that is not a plain file name", len(order)+1, at)
		case h.Size < 0 || h.Size > size-at:
			return nil, nil, strict.Refuse(strict.Truncated, "the archive's member %d at 0x%x (%d bytes) reaches past the end of the file (%d bytes)", len(order)+1, at, h.Size, size)
		}
		if _, twice := members[h.Name]; twice {
			return nil, nil, strict.Refuse(strict.UnsafeTar, "the archive's member %d at 0x%x has the name of another", len(order)+1, at)
		}
		members[h.Name] = member{at, h.Size}
		order = append(order, h.Name)
	}
}

// padding refuses anything but zeroes from the end of the archive at off to the
// end of the file: it could be another archive for another reader.
func padding(r io.ReaderAt, off, size int64) error {
	if size-off > maxPadding {
		return strict.Refuse(strict.Limit, "the archive ends at 0x%x, and %d bytes follow; %d are the most", off, size-off, int64(maxPadding))
	}
	buf := make([]byte, 64<<10)
	for off < size {
		p := buf[:min(int64(len(buf)), size-off)]
		if n, err := r.ReadAt(p, off); n < len(p) {
			if err == nil || err == io.EOF {
				return strict.Refuse(strict.Truncated, "the archive is cut off after %d bytes", off+int64(n))
			}
			return err
		}
		for i, b := range p {
			if b != 0 {
				return strict.Refuse(strict.Corrupt, "the archive goes on at 0x%x, behind its end", off+int64(i))
			}
		}
		off += int64(len(p))
	}
	return nil
}

// small reads a whole member that is text.
func small(r io.ReaderAt, m member, what string) ([]byte, error) {
	if m.size > maxDescription {
		return nil, strict.Refuse(strict.Limit, "%s has %d bytes; %d is the most", what, m.size, int64(maxDescription))
	}
	b := make([]byte, m.size)
	if _, err := io.ReadFull(io.NewSectionReader(r, m.offset, m.size), b); err == io.ErrUnexpectedEOF {
		return nil, strict.Refuse(strict.Truncated, "%s is cut off", what)
	} else if err != nil && err != io.EOF {
		return nil, err
	}
	return b, nil
}

// line is one of a manifest: "SHA256(disk.vmdk)= 0123...".
var line = regexp.MustCompile(`^(SHA1|SHA256|SHA512) ?\(([^)]*)\) ?= ?([0-9a-fA-F]+)\r?$`)

// manifest compares the description with its line and keeps those of the disk.
// Both must have one, and whatever else has one must be a member.
func (d *Disk) manifest(text []byte, members map[string]member, ovf string, description []byte, disk string) error {
	listed := map[string]bool{}
	for l := range strings.Lines(string(text)) {
		l = strings.TrimRight(l, "\r\n")
		if l == "" {
			continue
		}
		parts := line.FindStringSubmatch(l)
		if parts == nil {
			return strict.Refuse(strict.Corrupt, "the manifest has a line that is no digest")
		}
		s := sum{make: map[string]func() hash.Hash{"SHA1": sha1.New, "SHA256": sha256.New, "SHA512": sha512.New}[parts[1]]}
		if _, ok := members[parts[2]]; !ok {
			return strict.Refuse(strict.Corrupt, "the manifest lists a file that is not in the archive")
		}
		listed[parts[2]] = true
		s.want, _ = hex.DecodeString(parts[3]) // of an odd length it is nil, and differs
		switch h := s.make(); parts[2] {
		case ovf:
			h.Write(description)
			if string(h.Sum(nil)) != string(s.want) {
				return strict.Refuse(strict.Checksum, "the description does not have the digest that the manifest gives")
			}
		case disk:
			d.sums = append(d.sums, s)
			d.Features = append(d.Features, "a manifest with "+parts[1])
		}
	}
	switch {
	case !listed[ovf]:
		return strict.Refuse(strict.Corrupt, "the manifest does not list the description")
	case !listed[disk]:
		return strict.Refuse(strict.Corrupt, "the manifest does not list the disk")
	}
	return nil
}

// Check compares the disk with what the manifest says of it; without a manifest
// it reads nothing. progress is told how many of its bytes were read, and may be
// nil.
func (d Disk) Check(ctx context.Context, r io.ReaderAt, progress func(done int64)) error {
	if len(d.sums) == 0 {
		return nil
	}
	hashes := make([]hash.Hash, len(d.sums))
	for i, s := range d.sums {
		hashes[i] = s.make()
	}
	buf := make([]byte, 1<<20)
	for off := int64(0); off < d.Size; {
		p := buf[:min(int64(len(buf)), d.Size-off)]
		if n, err := r.ReadAt(p, d.Offset+off); n < len(p) {
			if err == nil || err == io.EOF {
				return strict.Refuse(strict.Truncated, "the disk is cut off after %d bytes", off+int64(n))
			}
			return err
		}
		for _, h := range hashes {
			h.Write(p)
		}
		off += int64(len(p))
		if progress != nil {
			progress(off)
		}
		if err := ctx.Err(); err != nil {
			return err
		}
	}
	for i, h := range hashes {
		if string(h.Sum(nil)) != string(d.sums[i].want) {
			return strict.Refuse(strict.Checksum, "the disk does not have the digest that the manifest gives").WithHint("fetch the archive again")
		}
	}
	return nil
}
