package metamorph

import (
	"fmt"
	"math/rand/v2"
	"slices"
)

// kind is a sort of operation.
type kind string

const (
	create         kind = "create"
	clone          kind = "clone"
	write          kind = "write"
	snapshot       kind = "snapshot"
	deleteSnapshot kind = "delete snapshot"
	grow           kind = "grow"
	shrink         kind = "shrink"
	remove         kind = "delete"
	abandon        kind = "stage and delete"
	restart        kind = "restart"
	check          kind = "read"
	checkSnapshot  kind = "read snapshot"
	list           kind = "list"
)

// op is one operation of a history. It speaks of volumes and snapshots by the
// number they got when they were made; what a driver calls them is not its
// affair.
type op struct {
	Kind     kind
	Volume   int
	Base     bool // create: an immutable volume, to be cloned
	From     int  // clone: the base
	Snapshot int
	Size     int64
	Pieces   []piece
	Sync     bool
	Keep     bool // write, read: the device stays open for what follows
}

func (o op) String() string {
	s := fmt.Sprintf("%s volume %d", o.Kind, o.Volume)
	switch o.Kind {
	case create:
		s += fmt.Sprintf(" of %d bytes, base=%v", o.Size, o.Base)
	case clone:
		s += fmt.Sprintf(" of %d bytes from base %d", o.Size, o.From)
	case grow, shrink:
		s += fmt.Sprintf(" to %d bytes", o.Size)
	case snapshot, deleteSnapshot, checkSnapshot:
		s += fmt.Sprintf(" snapshot %d", o.Snapshot)
	case restart, list:
		s = string(o.Kind)
	}
	if o.Keep {
		s += ", and keeps it open"
	}
	for _, p := range o.Pieces {
		s += fmt.Sprintf(" [%d+%d seed %x]", p.Offset, p.Length, p.Seed)
	}
	return s
}

// Bounds of what there is at a time, so that a small pool of any technology
// suffices: at most 15 containers of 12 MiB.
const (
	unit         = 4 << 20 // a multiple of every technology's unit
	maxUnits     = 3
	maxVolumes   = 6
	maxBases     = 3
	maxSnapshots = 6
)

// planned is what the planner knows of a volume.
type planned struct {
	number    int
	base      bool
	size      int64
	snapshots []int
}

// planner makes a history. It knows no driver: the same seed is the same
// history everywhere.
type planner struct {
	r         *rand.Rand
	next      int
	vols      []*planned
	snapshots int
}

// history returns n operations that follow from seed.
func history(seed uint64, n int) []op {
	p := &planner{r: rand.New(rand.NewPCG(seed, 0))}
	var ops []op
	for len(ops) < n {
		if o, ok := p.draw(); ok {
			ops = append(ops, o)
		}
	}
	return ops
}

// weights say how often each operation is tried, in percent.
var weights = []struct {
	kind   kind
	weight int
}{
	{write, 25}, {check, 14}, {checkSnapshot, 10}, {create, 9}, {clone, 9}, {snapshot, 9}, {grow, 5},
	{shrink, 4}, {deleteSnapshot, 4}, {remove, 4}, {restart, 3}, {list, 2}, {abandon, 2},
}

// draw returns the next operation, if what was drawn is possible now.
func (p *planner) draw() (op, bool) {
	n := p.r.IntN(100)
	k := check
	for _, w := range weights {
		if n -= w.weight; n < 0 {
			k = w.kind
			break
		}
	}
	switch k {
	case restart, list:
		return op{Kind: k}, true
	case create, abandon:
		return p.create(k)
	case clone:
		return p.clone()
	}
	return p.change(k)
}

func (p *planner) create(k kind) (op, bool) {
	o := op{Kind: k, Volume: p.next, Base: p.r.IntN(3) == 0, Size: unit * (1 + p.r.Int64N(maxUnits))}
	if k == create && p.count(o.Base) >= map[bool]int{false: maxVolumes, true: maxBases}[o.Base] {
		return o, false
	}
	p.next++
	o.Pieces = p.pieces(o.Size, 1+p.r.IntN(4))
	if k == create {
		p.vols = append(p.vols, &planned{number: o.Volume, base: o.Base, size: o.Size})
	}
	return o, true
}

func (p *planner) clone() (op, bool) {
	b := p.pick(func(v *planned) bool { return v.base })
	if b == nil || p.count(false) >= maxVolumes {
		return op{}, false
	}
	o := op{Kind: clone, Volume: p.next, From: b.number, Size: b.size + unit*p.r.Int64N(maxUnits-b.size/unit+1)}
	p.next++
	o.Pieces = p.pieces(o.Size, p.r.IntN(3))
	p.vols = append(p.vols, &planned{number: o.Volume, size: o.Size})
	return o, true
}

// change draws an operation on a volume that is there.
func (p *planner) change(k kind) (op, bool) {
	v := p.pick(func(v *planned) bool {
		switch k {
		case check, remove:
			return true
		case deleteSnapshot, checkSnapshot:
			return len(v.snapshots) > 0
		case grow:
			return !v.base && v.size < maxUnits*unit
		case shrink:
			return !v.base && v.size > unit
		}
		return !v.base
	})
	if v == nil {
		return op{}, false
	}
	o := op{Kind: k, Volume: v.number}
	switch k {
	case check:
		o.Keep = p.r.IntN(4) > 0
	case write:
		o.Keep = p.r.IntN(4) > 0
		o.Pieces, o.Sync = p.pieces(v.size, 1+p.r.IntN(5)), p.r.IntN(4) == 0
	case snapshot:
		if p.snapshots == maxSnapshots {
			return o, false
		}
		o.Snapshot = p.next
		p.next++
		p.snapshots++
		v.snapshots = append(v.snapshots, o.Snapshot)
	case deleteSnapshot, checkSnapshot:
		i := p.r.IntN(len(v.snapshots))
		o.Snapshot = v.snapshots[i]
		if k == deleteSnapshot {
			v.snapshots = slices.Delete(v.snapshots, i, i+1)
			p.snapshots--
		}
	case grow:
		v.size += unit * (1 + p.r.Int64N(maxUnits-v.size/unit))
		o.Size = v.size
	case shrink:
		v.size -= unit * (1 + p.r.Int64N(v.size/unit-1))
		o.Size = v.size
	case remove:
		p.snapshots -= len(v.snapshots)
		p.vols = slices.DeleteFunc(p.vols, func(other *planned) bool { return other == v })
	}
	return o, true
}

func (p *planner) count(base bool) (n int) {
	for _, v := range p.vols {
		if v.base == base {
			n++
		}
	}
	return n
}

// pick returns one of the volumes that fit, or nil.
func (p *planner) pick(fits func(*planned) bool) *planned {
	var all []*planned
	for _, v := range p.vols {
		if fits(v) {
			all = append(all, v)
		}
	}
	if len(all) == 0 {
		return nil
	}
	return all[p.r.IntN(len(all))]
}

// pieces draws n writes of all sizes, at any bytes and across any borders.
func (p *planner) pieces(size int64, n int) (all []piece) {
	for range n {
		length := 1 + p.r.Int64N(1<<(3+p.r.IntN(16))) // up to 256 KiB, small ones as often
		x := piece{Offset: p.r.Int64N(size - length + 1), Length: length, Seed: p.r.Uint64()}
		if p.r.IntN(5) == 0 {
			x.Seed, x.Length = 0, min(size-x.Offset, x.Length*8)
		}
		all = append(all, x)
	}
	return all
}
