package cli

import (
	"slices"
	"strings"

	"github.com/tarn-storage/tarn/api"
)

// option is one KEY=VALUE of a SPEC: where its value goes and which it may be
// (any, when words is empty).
type option struct {
	field func(*api.DiskSpec) *string
	words []string
}

var options = map[string]option{
	"fs":          {func(d *api.DiskSpec) *string { return &d.FS }, []string{"ext4", "xfs", "vfat"}},
	"label":       {func(d *api.DiskSpec) *string { return &d.Label }, nil},
	"pool":        {func(d *api.DiskSpec) *string { return &d.Pool }, nil},
	"bus":         {func(d *api.DiskSpec) *string { return &d.Bus }, []string{"virtio", "scsi", "sata"}},
	"disk-format": {func(d *api.DiskSpec) *string { return &d.Format }, []string{"raw", "qcow2"}},
	"discard":     {func(d *api.DiskSpec) *string { return &d.Discard }, []string{"unmap", "ignore"}},
	"cache":       {func(d *api.DiskSpec) *string { return &d.Cache }, []string{"none", "writeback", "writethrough", "directsync", "unsafe"}},
	"prealloc":    {func(d *api.DiskSpec) *string { return &d.Prealloc }, []string{"none", "full"}},
}

// specHelp is the grammar of a SPEC for people.
const specHelp = "SPEC = SIZE, or for --root IMAGE[:SIZE], for --cdrom IMAGE; then\n" + specOptions +
	"\nAn image without a size makes a disk of the image's size."

// dataHelp is the grammar of a data disk's SPEC.
const dataHelp = "SPEC = SIZE, then\n" + specOptions

const specOptions = "       [,fs=ext4|xfs|vfat][,label=L][,pool=P][,bus=virtio|scsi|sata]\n" +
	"       [,disk-format=raw|qcow2][,discard=unmap|ignore][,cache=MODE][,prealloc=none|full]"

// parseSpec reads a SPEC of one role. Only a root disk and a cdrom come from
// an image; only ephemeral and data disks get a file system.
func parseSpec(role, s string) (api.DiskSpec, error) {
	d := api.DiskSpec{Role: role}
	what := "--" + role
	head, rest, more := strings.Cut(s, ",")
	var err error
	if d.Image, d.Size, err = parseSource(what, head); err != nil {
		return d, err
	}
	switch {
	case role == "cdrom" && d.Size != 0:
		return d, usage("%s: a cdrom is as large as its image", what).WithHint("give IMAGE alone")
	case d.Image != "" && role != "root" && role != "cdrom":
		return d, usage("%s: %q is not a size", what, head).WithHint("only --root and --cdrom take an image; write a size, for example 20G")
	}
	seen := map[string]bool{}
	for more {
		var pair string
		pair, rest, more = strings.Cut(rest, ",")
		key, value, ok := strings.Cut(pair, "=")
		o, known := options[key]
		switch {
		case !known:
			return d, usage("%s: %q is not an option", what, key).WithHint("options: %s", strings.Join(optionNames(), ", "))
		case !ok || value == "":
			return d, usage("%s: the option %s needs a value", what, key)
		case seen[key]:
			return d, usage("%s: the option %s is given twice", what, key)
		case len(o.words) > 0 && !slices.Contains(o.words, value):
			return d, usage("%s: %s=%s is not possible", what, key, value).WithHint("%s is one of %s", key, strings.Join(o.words, ", "))
		}
		seen[key] = true
		*o.field(&d) = value
	}
	if (d.FS != "" || d.Label != "") && role != "ephemeral" && role != "data" {
		return d, usage("%s: only ephemeral and data disks get a file system", what)
	}
	if d.Label != "" && d.FS == "" && role == "data" {
		return d, usage("%s: label needs fs", what)
	}
	return d, nil
}

// only refuses a second SPEC of a flag that takes one. Such a flag is parsed as
// a list, because the flag parser would drop all but the last.
func only(flag string, specs []string) error {
	if len(specs) > 1 {
		return usage("%s may be given once", flag)
	}
	return nil
}

// parseSource reads IMAGE[:SIZE] or SIZE. No image has a name that reads as a
// size, so the two cannot be confused.
func parseSource(what, s string) (image string, size int64, err error) {
	image, sizeText, both := strings.Cut(s, ":")
	switch {
	case s == "":
		return "", 0, usage("%s is empty", what).WithHint("give an image, a size or IMAGE:SIZE")
	case !both && sizeLike().MatchString(s):
		size, err = parseSize(what, s)
		return "", size, err
	case !both:
		return s, 0, nil
	case image == "":
		return "", 0, usage("%s: no image stands before the colon in %q", what, s)
	}
	size, err = parseSize(what, sizeText)
	return image, size, err
}

func optionNames() []string {
	names := make([]string, 0, len(options))
	for name := range options {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}
