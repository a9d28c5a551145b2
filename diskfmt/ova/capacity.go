package ova

import (
	"math"
	"regexp"
	"strconv"
	"strings"

	"github.com/tarn-storage/tarn/diskfmt/strict"
)

// units are the programmatic ones (DMTF DSP0004, annex C) that disks are
// measured in: "byte", "byte * 2^30", "byte * 512", "byte*10^9".
var units = regexp.MustCompile(`^bytes?(?: ?\* ?([0-9]{1,7})(?:\^([0-9]{1,2}))?)?$`)

// words are units of before OVF 1.0, which old tools still write.
var words = map[string]int64{"kilobytes": 1 << 10, "megabytes": 1 << 20, "gigabytes": 1 << 30}

// maxUnit is the largest unit in bytes.
const maxUnit = 1 << 40

// rounding is what a size may be off by: some formats keep whole cylinders, of
// 16 heads and 255 sectors at most.
const rounding = 16 * 255 * 512

// capacity returns the disk's size as its attributes have it, in units of so
// many bytes: 0 of 0 when they say nothing, or refer to a property that somebody
// chooses.
func capacity(d attributes) (n, unit int64, err error) {
	text := strings.TrimSpace(d["capacity"])
	if text == "" || strings.HasPrefix(text, "${") {
		return 0, 0, nil
	}
	n, err = strconv.ParseInt(text, 10, 64)
	if err != nil || n < 0 {
		return 0, 0, strict.Refuse(strict.Corrupt, "the description gives the disk a capacity that is no number")
	}
	unit = unitOf(d["capacityAllocationUnits"])
	if unit == 0 {
		return 0, 0, strict.Refuse(strict.Feature, "the description measures the disk's capacity in a unit that is not known").
			WithHint("unpack the archive and import the disk")
	}
	if n > math.MaxInt64/unit-1 {
		return 0, 0, strict.Refuse(strict.Corrupt, "the description gives the disk a capacity of %d times %d bytes", n, unit)
	}
	return n, unit, nil
}

// unitOf returns a unit's bytes, 0 if it is not known.
func unitOf(text string) int64 {
	text = strings.ToLower(strings.Join(strings.Fields(text), " "))
	if n := words[text]; n > 0 || text == "" {
		return max(n, 1)
	}
	parts := units.FindStringSubmatch(text)
	if parts == nil {
		return 0
	}
	base, power := int64(1), 1
	if parts[1] != "" {
		base, _ = strconv.ParseInt(parts[1], 10, 64) // has few digits
	}
	if parts[2] != "" {
		power, _ = strconv.Atoi(parts[2]) // likewise
	}
	unit := int64(1)
	for range power {
		if unit *= base; unit > maxUnit || unit == 0 {
			return 0
		}
	}
	return unit
}

// CheckSize refuses a disk of size bytes of which the description says that it
// has others. A capacity is rounded to its unit.
func (d Disk) CheckSize(size int64) error {
	said := d.capacity * d.unit
	if off := max(said-size, size-said); d.unit == 0 || off < d.unit || off < rounding {
		return nil
	}
	return strict.Refuse(strict.Corrupt, "the description says that the disk has %d bytes, its image %d", said, size).
		WithHint("unpack the archive and import the disk by itself if its own size is right")
}
