package volio

import (
	"context"
	"encoding/binary"
	"iter"

	"github.com/tarn-storage/tarn/diskfmt"
	"github.com/tarn-storage/tarn/errs"
)

// An exported qcow2 image is laid out so that it can be streamed: header,
// refcount table, refcount blocks, L1, L2 tables, then the data in the guest's
// order (QEMU's docs/interop/qcow2.txt). Where everything lies follows from the
// extents alone, so that they are walked twice and the data is read once.
const (
	clusterBits = 16
	cluster     = 1 << clusterBits
	perL2       = cluster / 8 // entries of an L2 table, and of a cluster of L1 or refcount table
	perBlock    = cluster / 2 // refcounts of 16 bits in a block
	copied      = 1 << 63     // L1 and L2 entries: referenced once
)

// clusters is a run of clusters that hold data.
type clusters struct{ first, n int64 }

// dataClusters yields the runs of clusters of r in which there is data. Runs do
// not touch each other.
func dataClusters(r diskfmt.Reader) iter.Seq2[clusters, error] {
	return func(yield func(clusters, error) bool) {
		var run clusters
		for off := int64(0); off < r.Size(); {
			e, err := r.Extent(off)
			if err != nil {
				yield(run, err)
				return
			}
			off = e.End()
			if e.Kind == diskfmt.Zero {
				continue
			}
			first, end := e.Offset>>clusterBits, (e.End()+cluster-1)>>clusterBits
			if run.n > 0 && first > run.first+run.n {
				if !yield(run, nil) {
					return
				}
				run = clusters{}
			}
			if run.n == 0 {
				run.first = first
			}
			run.n = end - run.first
		}
		if run.n > 0 {
			yield(run, nil)
		}
	}
}

// plan is where everything of an image lies, in clusters.
type plan struct {
	size       int64  // virtual, bytes
	l1         []bool // whether an L1 entry has a table
	tables     int64  // L2 tables
	data       int64  // data clusters
	refTable   int64
	refBlocks  int64
	l1Clusters int64
}

func ceil(a, b int64) int64 { return (a + b - 1) / b }

// newPlan lays out an image of what r holds.
func newPlan(ctx context.Context, r diskfmt.Reader) (plan, error) {
	p := plan{size: (r.Size() + 511) &^ 511}
	p.l1 = make([]bool, ceil(p.size, cluster*perL2))
	p.l1Clusters = ceil(int64(len(p.l1)), perL2)
	for run, err := range dataClusters(r) {
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			return p, err
		}
		p.data += run.n
		for i := run.first / perL2; i <= (run.first+run.n-1)/perL2; i++ {
			if !p.l1[i] {
				p.l1[i] = true
				p.tables++
			}
		}
	}
	for {
		blocks := ceil(p.total(), perBlock)
		table := ceil(blocks, perL2)
		if blocks == p.refBlocks && table == p.refTable {
			return p, nil
		}
		p.refBlocks, p.refTable = blocks, table
	}
}

func (p plan) total() int64    { return p.dataAt() + p.data }
func (p plan) blocksAt() int64 { return 1 + p.refTable }
func (p plan) l1At() int64     { return p.blocksAt() + p.refBlocks }
func (p plan) tablesAt() int64 { return p.l1At() + p.l1Clusters }
func (p plan) dataAt() int64   { return p.tablesAt() + p.tables }

// header returns the first cluster: version 3, no features, no backing.
func (p plan) header() []byte {
	b := make([]byte, cluster)
	be := binary.BigEndian
	be.PutUint32(b[0:], 0x514649fb) // magic
	be.PutUint32(b[4:], 3)          // version
	be.PutUint32(b[20:], clusterBits)
	be.PutUint64(b[24:], uint64(p.size))
	be.PutUint32(b[36:], uint32(len(p.l1)))
	be.PutUint64(b[40:], uint64(p.l1At()*cluster))
	be.PutUint64(b[48:], 1*cluster) // refcount table
	be.PutUint32(b[56:], uint32(p.refTable))
	be.PutUint32(b[96:], 4)    // refcount_order: 16 bits
	be.PutUint32(b[100:], 112) // header_length
	return b
}

// exportQcow2 writes r as a qcow2 image.
func exportQcow2(o *output, r diskfmt.Reader) error {
	p, err := newPlan(o.ctx, r)
	if err != nil {
		return err
	}
	o.total = p.total() * cluster
	for _, write := range []func(*output) error{p.writeHead, p.writeL1,
		func(o *output) error { return p.writeL2(o, r) }, func(o *output) error { return p.writeData(o, r) }} {
		if err := write(o); err != nil {
			return err
		}
	}
	return nil
}

// writeHead writes header, refcount table and refcount blocks.
func (p plan) writeHead(o *output) error {
	if _, err := o.Write(p.header()); err != nil {
		return err
	}
	block := func(i int64) uint64 { return uint64((p.blocksAt() + i) * cluster) }
	if err := words(o, p.refTable*perL2, p.refBlocks, block); err != nil {
		return err
	}
	b := make([]byte, cluster)
	for i := range p.refBlocks {
		clear(b)
		for j := range min(perBlock, p.total()-i*perBlock) {
			binary.BigEndian.PutUint16(b[j*2:], 1)
		}
		if _, err := o.Write(b); err != nil {
			return err
		}
	}
	return nil
}

func (p plan) writeL1(o *output) error {
	next := p.tablesAt()
	return words(o, p.l1Clusters*perL2, int64(len(p.l1)), func(i int64) uint64 {
		if !p.l1[i] {
			return 0
		}
		next++
		return uint64((next-1)*cluster) | copied
	})
}

// words writes a table of n entries, of which those from used on are zero.
func words(o *output, n, used int64, entry func(i int64) uint64) error {
	b := make([]byte, 0, cluster)
	for i := range n {
		var w uint64
		if i < used {
			w = entry(i)
		}
		if b = binary.BigEndian.AppendUint64(b, w); len(b) == cap(b) {
			if _, err := o.Write(b); err != nil {
				return err
			}
			b = b[:0]
		}
	}
	return nil
}

// errChanged is what a second walk finds that differs from the first.
func errChanged() error {
	return errs.New(errs.Internal, "", "", "the volume changed while it was exported")
}

// writeL2 writes the L2 tables that hold anything.
func (p plan) writeL2(o *output, r diskfmt.Reader) error {
	b := make([]byte, cluster)
	table, next := int64(-1), p.dataAt()
	flush := func() error {
		if table < 0 {
			return nil
		}
		_, err := o.Write(b)
		clear(b)
		return err
	}
	for run, err := range dataClusters(r) {
		if err != nil {
			return err
		}
		for c := run.first; c < run.first+run.n; c++ {
			if c/perL2 != table {
				if err := flush(); err != nil {
					return err
				}
				table = c / perL2
			}
			binary.BigEndian.PutUint64(b[c%perL2*8:], uint64(next*cluster)|copied)
			next++
		}
	}
	if err := flush(); err != nil {
		return err
	}
	if o.pos != p.dataAt()*cluster || next != p.total() {
		return errChanged()
	}
	return nil
}

func (p plan) writeData(o *output, r diskfmt.Reader) error {
	for run, err := range dataClusters(r) {
		if err == nil && o.pos+run.n*cluster > o.total {
			err = errChanged()
		}
		if err == nil {
			err = o.copy(r, run.first*cluster, run.n*cluster)
		}
		if err != nil {
			return err
		}
	}
	if o.pos != o.total {
		return errChanged()
	}
	return nil
}
