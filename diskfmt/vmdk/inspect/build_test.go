package inspect_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"testing"

	"github.com/tarn-storage/tarn/diskfmt"
	"github.com/tarn-storage/tarn/diskfmt/strict"
	"github.com/tarn-storage/tarn/diskfmt/vmdk"
	"github.com/tarn-storage/tarn/diskfmt/vmdk/inspect"
	"github.com/tarn-storage/tarn/diskfmt/vmdk/internal/layout"
	"github.com/tarn-storage/tarn/errs"
)

var _ diskfmt.Mapper = (*inspect.Source)(nil)

var le = binary.LittleEndian

const (
	sector = layout.Sector
	grain  = 64 << 10
	// Both sound images hold a disk of two and a half grains and 512 more.
	diskSize = 5*grain/2 + 512
)

// The sound monolithicSparse image: header 0x0, descriptor 0x200, redundant
// directory 0x2a00 and its table 0x2c00, directory 0x3400 and its table 0x3600,
// grain 2 at 0x10000, grain 0 at 0x20000. Grain 1 is not stored.
const (
	rgd      = 0x2a00
	rgt      = 0x2c00
	gd       = 0x3400
	gt       = 0x3600
	sparseG2 = 0x10000
	sparseG0 = 0x20000
)

const sparseText = `# Disk DescriptorFile
version=1
CID=c913ed87
parentCID=ffffffff
createType="monolithicSparse"

# Extent description
RW 321 SPARSE "disk.vmdk"

# The Disk Data Base
#DDB

ddb.virtualHWVersion = "4"
ddb.geometry.cylinders = "20"
ddb.adapterType = "ide"
`

func guest() []byte {
	b := make([]byte, diskSize)
	for i := range b {
		if i/grain != 1 {
			b[i] = byte(i>>9) | 1
		}
	}
	return b
}

func sparse() []byte {
	h := layout.Header{
		Magic: layout.Magic, Version: 1, Flags: layout.FlagNewline | layout.FlagRedundant, Capacity: diskSize / sector, Grain: 128,
		DescOffset: 1, DescSize: 20, TableSize: 512, RGDOffset: rgd / sector, GDOffset: gd / sector, Overhead: 128,
		Newline: [4]byte([]byte(layout.Newline)),
	}
	b := make([]byte, sparseG0+grain)
	copy(b, h.Encode())
	copy(b[sector:], sparseText)
	le.PutUint32(b[rgd:], rgt/sector)
	le.PutUint32(b[gd:], gt/sector)
	for _, t := range []int{rgt, gt} {
		le.PutUint32(b[t:], sparseG0/sector)
		le.PutUint32(b[t+8:], sparseG2/sector)
	}
	g := guest()
	copy(b[sparseG0:], g[:grain])
	copy(b[sparseG2:], g[2*grain:])
	return b
}

// memory is a disk in memory.
type memory struct{ b []byte }

func (m memory) ReadAt(p []byte, off int64) (int, error) { return bytes.NewReader(m.b).ReadAt(p, off) }
func (m memory) Size() int64                             { return int64(len(m.b)) }
func (m memory) Extent(off int64) (diskfmt.Extent, error) {
	return diskfmt.Extent{Offset: off, Length: m.Size() - off, Kind: diskfmt.Data}, nil
}

// stream is the sound streamOptimized image: header 0x0, descriptor 0x200,
// grain 0 at 0x10000 (two sectors), grain 2 at streamG2.
func stream(t testing.TB) []byte {
	t.Helper()
	var out bytes.Buffer
	if err := vmdk.Write(t.Context(), &out, memory{guest()}, vmdk.Options{}, nil); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

const streamG0 = 0x10000

// places says where things are in the sound stream.
type places struct{ g2, gt, gd, foot int }

func find(b []byte) places {
	foot := len(b) - 2*sector
	d := int(le.Uint64(b[foot+56:])) * sector
	t := int(le.Uint32(b[d:])) * sector
	return places{int(le.Uint32(b[t+8:])) * sector, t, d, foot}
}

type change func(b []byte) []byte

func put32(off int, v uint32) change {
	return func(b []byte) []byte { le.PutUint32(b[off:], v); return b }
}
func put64(off int, v uint64) change {
	return func(b []byte) []byte { le.PutUint64(b[off:], v); return b }
}
func put8(off int, v byte) change { return func(b []byte) []byte { b[off] = v; return b } }
func cut(n int) change            { return func(b []byte) []byte { return b[:n] } }

func all(cs ...change) change {
	return func(b []byte) []byte {
		for _, c := range cs {
			b = c(b)
		}
		return b
	}
}

// text replaces a part of the descriptor, which must be there.
func text(from, to string) change {
	return func(b []byte) []byte {
		d := b[sector : 21*sector]
		n := bytes.Replace(d, []byte(from), []byte(to), 1)
		if bytes.Equal(n, d) {
			panic(fmt.Sprintf("the descriptor has no %q", from))
		}
		clear(d[copy(d, n):])
		return b
	}
}

// add appends a line to the descriptor.
func add(line string) change { return text("#DDB\n", "#DDB\n"+line+"\n") }

// in changes a stream at places that depend on it.
func in(f func(b []byte, p places)) change {
	return func(b []byte) []byte { f(b, find(b)); return b }
}

// both changes a field of 32 bits in a stream's header and footer.
func both(off int, v uint32) change {
	return in(func(b []byte, p places) { le.PutUint32(b[off:], v); le.PutUint32(b[p.foot+off:], v) })
}

func open(t testing.TB, b []byte) (*inspect.Source, strict.Report, error) {
	return inspect.Open(t.Context(), bytes.NewReader(b), int64(len(b)), strict.Limits{})
}

func classed(err error) bool {
	var e *errs.Error
	return errors.As(err, &e) && e.Kind == errs.Unsafe && e.Class != "" && e.Message != ""
}
