package plan

import (
	"fmt"

	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/disk"
)

// Space is what is known of a capacity domain when a plan is made, in bytes:
// measured (Capacity, Free, Foreign) and promised (Committed, Writing).
type Space struct {
	Capacity  int64
	Free      int64
	Foreign   int64 // used by others than tarn
	Committed int64 // what the domain's volumes may come to need
	Writing   int64 // what running operations will still write
}

// Need is what an operation asks of a domain, in bytes.
type Need struct {
	Commit int64
	Write  int64
}

// Available returns what a domain may still promise, never below 0.
func Available(d disk.Domain, s Space) int64 { return max(0, Promisable(d, s)-s.Committed) }

// Promisable returns the sum of commitments that a domain may hold; it is below 0
// when others took what was reserved.
func Promisable(d disk.Domain, s Space) int64 {
	return (s.Capacity-s.Foreign)/1000*d.Overcommit + (s.Capacity-s.Foreign)%1000*d.Overcommit/1000 - d.Reserve.Of(s.Capacity)
}

// leastFree is what anything new needs, in bytes, for records and metadata.
const leastFree = 1 << 20

// Full says, with the numbers, why domain d can take on nothing at all, whatever
// is running in it; "" if it can.
func Full(d disk.Domain, s Space) string {
	reserve := d.Reserve.Of(s.Capacity)
	switch {
	case s.Free <= reserve || s.Free < leastFree:
		return fmt.Sprintf("%s of %s are free, the reserve is %s", disk.FormatSize(s.Free), disk.FormatSize(s.Capacity), disk.FormatSize(reserve))
	case Available(d, s) == 0:
		return fmt.Sprintf("all that may be promised of %s is (%s committed, %s used by others, %s reserved, overcommit %.2f)",
			disk.FormatSize(s.Capacity), disk.FormatSize(s.Committed), disk.FormatSize(s.Foreign), disk.FormatSize(reserve), float64(d.Overcommit)/1000)
	}
	return ""
}

// Admit decides whether domain d can take on n (invariant I11): the sum of
// commitments stays within (capacity - foreign) x overcommit - reserve, and
// what running operations still write fits into what is free above the reserve.
func Admit(d disk.Domain, s Space, n Need) error {
	if n.Commit > Available(d, s) {
		return errs.New(errs.NoSpace, "capacity", d.Identity,
			"%s more are asked for, %s of %s may still be promised (%s committed, %s used by others, %s reserved, overcommit %.2f)",
			disk.FormatSize(n.Commit), disk.FormatSize(Available(d, s)), disk.FormatSize(s.Capacity), disk.FormatSize(s.Committed),
			disk.FormatSize(s.Foreign), disk.FormatSize(d.Reserve.Of(s.Capacity)), float64(d.Overcommit)/1000).
			WithHint("delete disks, ask for less, or raise --overcommit of the pool")
	}
	if free := s.Free - d.Reserve.Of(s.Capacity); n.Write > free-s.Writing {
		return errs.New(errs.NoSpace, "capacity", d.Identity,
			"%s must be written, %s are free above the reserve of %s and %s of that are promised to running operations",
			disk.FormatSize(n.Write), disk.FormatSize(max(0, free)), disk.FormatSize(d.Reserve.Of(s.Capacity)), disk.FormatSize(s.Writing)).
			WithHint("free some space or wait for running operations")
	}
	return nil
}
