package guest

import (
	"fmt"
	"strings"

	"github.com/tarn-storage/tarn/api"
)

// Check compares what tarn says of a disk with what the guest saw of it and
// returns what differs, nothing when all is as it should be.
func (r Report) Check(want api.Disk) []string {
	got, ok := r.Disk(want.Serial)
	if !ok {
		return []string{"no disk with serial " + want.Serial}
	}
	var bad []string
	expect := func(what string, got, want any) {
		if got != want {
			bad = append(bad, fmt.Sprintf("%s: got %v, want %v", what, got, want))
		}
	}
	expect("size", got.Size, want.Size)
	expect("root", got.Root, want.Role == "root")
	if want.ReadOnly {
		expect("read-only", got.ReadOnly, true)
	}
	src := want.Source
	switch src.Kind {
	case "filesystem":
		expect("file system", got.Type, src.FS)
		expect("label", got.Label, src.Label)
		expect("mounted and written to", got.Written > 0, true)
	case "swap":
		expect("file system", got.Type, "swap")
		expect("swapped to", got.Swap, true)
	case "config-2", "cidata":
		expect("label", got.Label, src.Kind)
		expect("config drive read", got.Config != nil && got.Config.InstanceID != "", true)
	case "blank":
		expect("content", got.Type+got.Table, "")
	}
	return bad
}

// String is the disk in one line for people.
func (d Disk) String() string {
	size := fmt.Sprintf("%d MiB", d.Size>>20)
	if d.Size%(1<<20) != 0 {
		size = fmt.Sprintf("%d KiB", d.Size>>10)
	}
	words := []string{fmt.Sprintf("%-4s serial %s, %s", d.Device, d.Serial, size)}
	add := func(is bool, format string, args ...any) {
		if is {
			words = append(words, fmt.Sprintf(format, args...))
		}
	}
	add(d.Root, "the root disk")
	add(d.Table != "", "%s partition table", d.Table)
	add(d.Type != "", "%s", d.Type)
	add(d.Label != "", "label %s", d.Label)
	add(d.ReadOnly, "read-only")
	add(d.Written > 0, "mounted and written")
	add(d.Swap, "in use as swap")
	add(d.Config != nil, "read as config drive")
	add(d.Type+d.Table == "", "blank")
	return strings.Join(words, ", ")
}
