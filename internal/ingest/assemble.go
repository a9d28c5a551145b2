package ingest

import (
	"encoding/binary"
	"io"

	"github.com/tarn-storage/tarn/diskfmt"
	"github.com/tarn-storage/tarn/diskfmt/qcow2/inspect"
	"github.com/tarn-storage/tarn/errs"
)

// assembler takes a qcow2 stream apart as it comes: a cluster of data that a
// table seen before maps goes straight to its place in the output, everything
// else into the spool. The tables are read here without judgement, only to
// decide where bytes wait; the verdict comes from package inspect, which reads
// all tables from the spool afterwards. A cluster that was taken for data and is
// metadata, too, is refused then as an overlap, because the table that calls it
// data is in the spool.
type assembler struct {
	out   *descriptor // nil: everything goes into the spool
	spool descriptor
	bits  uint
	size  int64 // virtual
	l1At  int64
	l1Len int64 // bytes

	tables map[int64]int64 // host cluster of an L2 table to come -> its L1 index
	guest  map[int64]int64 // host cluster to come -> guest cluster
	direct bitmap          // host clusters that went to the output
	placed bitmap          // guest clusters that came so
	run    pieces
}

// pieces is a run of bytes with one destination.
type pieces struct {
	b      []byte
	off    int64
	direct bool
}

// maxPending bounds the clusters that are expected; more than these are spooled.
const maxPending = 1 << 20

// newAssembler reads from the header where the tables are. Judged headers only.
func newAssembler(head []byte, size int64, out *descriptor, spool descriptor) *assembler {
	be := binary.BigEndian
	a := &assembler{
		out: out, spool: spool, size: size, bits: uint(be.Uint32(head[20:])),
		l1At: int64(be.Uint64(head[40:])), l1Len: int64(be.Uint32(head[36:])) * 8,
		tables: map[int64]int64{}, guest: map[int64]int64{},
	}
	const extendedL2 = 1 << 4
	v3 := be.Uint32(head[4:]) == 3
	if a.bits < 12 || v3 && be.Uint64(head[72:])&extendedL2 != 0 {
		a.out = nil
	}
	return a
}

// place puts the bytes b, which begin at off of the stream, where they belong.
func (a *assembler) place(b []byte, off int64) error {
	cluster := int64(1) << a.bits
	for len(b) > 0 {
		host := off >> a.bits
		n := min(int64(len(b)), (host+1)<<a.bits-off)
		g, direct := a.guest[host]
		to := off
		if direct {
			to = g<<a.bits + off&(cluster-1)
		}
		if err := a.add(b[:n], to, direct); err != nil {
			return err
		}
		b, off = b[n:], off+n
		if off&(cluster-1) != 0 {
			continue
		}
		if direct {
			delete(a.guest, host)
			a.direct.set(host)
			a.placed.set(g)
		} else if err := a.learn(host, off); err != nil {
			return err
		}
	}
	return a.flush()
}

// add appends b to the current run, or begins another.
func (a *assembler) add(b []byte, to int64, direct bool) error {
	if r := &a.run; len(r.b) > 0 && r.direct == direct && r.off+int64(len(r.b)) == to {
		r.b = r.b[:len(r.b)+len(b)] // the same buffer goes on
		return nil
	}
	if err := a.flush(); err != nil {
		return err
	}
	a.run = pieces{b, to, direct}
	return nil
}

func (a *assembler) flush() error {
	r := a.run
	a.run = pieces{}
	if !r.direct {
		_, err := a.spool.WriteAt(r.b, r.off)
		return err
	}
	w := writer{out: a.out, off: r.off}
	return w.write(r.b[:min(int64(len(r.b)), a.size-r.off)], true)
}

// learn reads the table that ended at end with the cluster host, if one did.
func (a *assembler) learn(host, end int64) error {
	if a.out == nil {
		return nil
	}
	index, isL2 := a.tables[host]
	isL1 := a.l1Len > 0 && host == (a.l1At+a.l1Len-1)>>a.bits
	if !isL1 && !isL2 {
		return nil
	}
	if err := a.flush(); err != nil {
		return err
	}
	if isL1 {
		return a.learnL1(end)
	}
	delete(a.tables, host)
	return a.learnL2(host, index, end)
}

// offsetBits are an L1 or L2 entry's host offset ("L1 table entry").
const offsetBits = 0x00fffffffffffe00

func (a *assembler) learnL1(end int64) error {
	b := make([]byte, a.l1Len)
	if _, err := a.spool.ReadAt(b, a.l1At); err != nil {
		return err
	}
	for i := int64(0); i < a.l1Len/8; i++ {
		host := int64(binary.BigEndian.Uint64(b[i*8:])&offsetBits) >> a.bits
		switch {
		case host == 0:
		case host<<a.bits >= end:
			if len(a.tables) < maxPending {
				a.tables[host] = i
			}
		default:
			if err := a.learnL2(host, i, end); err != nil {
				return err
			}
		}
	}
	return nil
}

func (a *assembler) learnL2(host, index, end int64) error {
	b := make([]byte, 1<<a.bits)
	if _, err := a.spool.ReadAt(b, host<<a.bits); err != nil {
		return err
	}
	per := int64(len(b) / 8)
	for i := range per {
		e := binary.BigEndian.Uint64(b[i*8:])
		const compressed, zero = 1 << 62, 1
		data, g := int64(e&offsetBits), index*per+i
		if e&(compressed|zero) == 0 && data >= end && g<<a.bits < a.size && len(a.guest) < maxPending {
			a.guest[data>>a.bits] = g
		}
	}
	return nil
}

// assembled is the guest's view of a stream that was taken apart: src maps it,
// and what went to the output is read there.
type assembled struct {
	*inspect.Source
	a   *assembler
	out io.ReaderAt
}

// newAssembled checks that exactly the clusters that src maps went to the
// output.
func newAssembled(src *inspect.Source, a *assembler, out io.ReaderAt) (assembled, error) {
	s := assembled{src, a, out}
	found := 0
	for off := int64(0); off < src.Size(); {
		m, err := src.Map(off)
		if err != nil {
			return s, err
		}
		off = m.End()
		if m.Kind != diskfmt.Data || m.Compressed {
			continue
		}
		for pos := int64(0); pos < m.Length; pos += 1 << a.bits {
			if !a.direct.has((m.HostOffset + pos) >> a.bits) {
				continue
			}
			if !a.placed.has((m.Offset + pos) >> a.bits) {
				return s, errMisplaced()
			}
			found++
		}
	}
	if found != a.placed.count || found != a.direct.count {
		return s, errMisplaced()
	}
	return s, nil
}

func errMisplaced() error {
	return errs.New(errs.Internal, "", "", "clusters of the stream were put where its tables do not have them").
		WithHint("import the image from a file")
}

// ReadAt reads guest bytes.
func (s assembled) ReadAt(p []byte, off int64) (int, error) {
	done := 0
	for done < len(p) && off+int64(done) < s.Size() {
		pos := off + int64(done)
		m, err := s.Map(pos)
		if err != nil {
			return done, err
		}
		n := min(m.Length, int64(len(p)-done))
		from := io.ReaderAt(s.Source)
		if m.Kind == diskfmt.Data && !m.Compressed {
			host := m.HostOffset
			direct := s.a.direct.has(host >> s.a.bits)
			whole := (host>>s.a.bits+1)<<s.a.bits - host // to the cluster's end
			for whole < n && s.a.direct.has((host+whole)>>s.a.bits) == direct {
				whole += 1 << s.a.bits
			}
			if n = min(n, whole); direct {
				from = s.out
			}
		}
		if got, err := from.ReadAt(p[done:done+int(n)], pos); int64(got) < n {
			return done + got, err
		}
		done += int(n)
	}
	if done < len(p) {
		return done, io.EOF
	}
	return done, nil
}

// bitmap is a set of small numbers that knows how many it has.
type bitmap struct {
	words []uint64
	count int
}

func (m *bitmap) set(i int64) {
	for int64(len(m.words)) <= i/64 {
		m.words = append(m.words, make([]uint64, 1+len(m.words))...)
	}
	if !m.has(i) {
		m.words[i/64] |= 1 << (i % 64)
		m.count++
	}
}

func (m *bitmap) has(i int64) bool {
	return i/64 < int64(len(m.words)) && m.words[i/64]&(1<<(i%64)) != 0
}
