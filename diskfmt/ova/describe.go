package ova

import (
	"strings"

	"github.com/tarn-storage/tarn/diskfmt/strict"
)

// formats are the disk formats by a part of the URI that names them (DSP0243,
// section 9.1, and what VMware, VirtualBox, oVirt and Hyper-V tools write).
var formats = []struct{ uri, format string }{
	{"vmdk.html", "vmdk"}, {"qcow-image-format", "qcow2"}, {"qcow2", "qcow2"}, {"vhd", "vhd"}, {"/raw", "raw"},
}

// describe reads the description: exactly one disk in exactly one file.
func describe(text []byte) (Disk, file, error) {
	env, err := read(text)
	if err != nil {
		return Disk{}, file{}, err
	}
	if len(env.disks) != 1 {
		return Disk{}, file{}, strict.Refuse(strict.Feature, "the description has %d disks, not one", len(env.disks)).
			WithHint("unpack the archive and import each disk")
	}
	d := env.disks[0]
	if d["parentRef"] != "" {
		return Disk{}, file{}, strict.Refuse(strict.External, "the disk in the description is a change to another one")
	}
	f, ok := env.files[d["fileRef"]]
	switch {
	case d["fileRef"] == "":
		return Disk{}, file{}, strict.Refuse(strict.Empty, "the disk in the description has no file: it is empty")
	case !ok:
		return Disk{}, file{}, strict.Refuse(strict.Corrupt, "the disk in the description refers to a file that the description does not list")
	case f.packed:
		return Disk{}, file{}, strict.Refuse(strict.Feature, "the disk's file is compressed or cut into pieces").WithHint("unpack the archive and import the disk")
	case !safeName.MatchString(f.name):
		return Disk{}, file{}, strict.Refuse(strict.External, "the disk's file is not named by a plain file name")
	}
	disk := Disk{}
	for _, k := range formats {
		if strings.Contains(strings.ToLower(d["format"]), k.uri) {
			disk.Format = k.format
			break
		}
	}
	if disk.Format == "" {
		return Disk{}, file{}, strict.Refuse(strict.Format, "the description gives the disk a format that is not known").
			WithHint("unpack the archive and import the disk with its --format")
	}
	disk.capacity, disk.unit, err = capacity(d)
	return disk, f, err
}
