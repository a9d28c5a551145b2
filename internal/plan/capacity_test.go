package plan

import (
	"testing"

	"github.com/tarn-storage/tarn/internal/disk"
)

func TestFull(t *testing.T) {
	const gib = 1 << 30
	for name, c := range map[string]struct {
		reserve disk.Reserve
		space   Space
		want    string
	}{
		"room":                      {space: Space{Capacity: 10 * gib, Free: gib, Committed: 9 * gib}},
		"nothing is free":           {space: Space{Capacity: 10 * gib}, want: "0 B of 10 GiB are free, the reserve is 0 B"},
		"hardly anything is free":   {space: Space{Capacity: 10 * gib, Free: 1<<20 - 1}, want: "1023.9 KiB of 10 GiB are free, the reserve is 0 B"},
		"only the reserve is free":  {reserve: disk.Reserve{Bytes: gib}, space: Space{Capacity: 10 * gib, Free: gib}, want: "1 GiB of 10 GiB are free, the reserve is 1 GiB"},
		"all of it is promised":     {space: Space{Capacity: 10 * gib, Free: 9 * gib, Foreign: gib, Committed: 9 * gib}, want: "all that may be promised of 10 GiB is (9 GiB committed, 1 GiB used by others, 0 B reserved, overcommit 1.00)"},
		"what runs will write less": {space: Space{Capacity: 10 * gib, Free: gib, Writing: 2 * gib}},
	} {
		if got := Full(disk.Domain{Overcommit: 1000, Reserve: c.reserve}, c.space); got != c.want {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}
