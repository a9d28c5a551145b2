// Package bundle reads DiskDescriptor.xml, which says what the files of a
// Parallels disk's folder are, after QEMU's docs/interop/prl-xml.rst, and writes
// those of tarn's own disks. Of others it refuses everything but one disk in one
// file of that folder: split disks, snapshots, encryption, files elsewhere, and
// XML with parts that could make a reader work or look elsewhere. Of its own it
// refuses what it would not have written. It opens nothing.
package bundle

import (
	"strconv"
	"strings"

	"github.com/tarn-storage/tarn/diskfmt/strict"
	"github.com/tarn-storage/tarn/errs"
)

// Name is how the description of a folder's disk is called.
const Name = "DiskDescriptor.xml"

// MaxSize is the most bytes that a description may have.
const MaxSize = 1 << 20

const (
	sectorSize = 512
	maxSectors = 1 << 53
	maxBlock   = 128 << 20 / sectorSize
	maxShots   = 1024
	noParent   = "{00000000-0000-0000-0000-000000000000}"
)

// Description is what a description says of its disk.
type Description struct {
	Sectors   int64  // of the disk, 512 bytes each
	BlockSize int64  // bytes of a cluster of the image
	Plain     bool   // the image is raw; else it is a Parallels expandable image
	File      string // the image's file: one safe component below the folder
}

// Size returns the disk's size in bytes.
func (d Description) Size() int64 { return d.Sectors * sectorSize }

// Parse judges the bytes of a DiskDescriptor.xml. Errors are errs.Unsafe with
// one of the classes EMPTY, UNSAFE_XML (no plain well-formed XML, or too deep),
// LIMIT, FORMAT_MISMATCH (XML of something else), UNSUPPORTED_VERSION,
// UNSUPPORTED_FEATURE, EXTERNAL_REFERENCE and CORRUPT. Elements that prl-xml.rst
// does not know are left aside, as it demands, and so is the geometry, because
// programs write all sorts.
func Parse(b []byte) (Description, error) {
	d, err := parse(b)
	return d, errs.Wrap(err, "parallels.bundle", Name)
}

func parse(b []byte) (Description, error) {
	var d Description
	root, err := readTree(b)
	if err != nil {
		return d, err
	}
	if root.name != "Parallels_disk_image" {
		return d, strict.Refuse(strict.Mismatch, "the outermost element is not Parallels_disk_image")
	}
	if root.version != "" && root.version != "1.0" {
		return d, strict.Refuse(strict.Version, "the version %s (in hex); only 1.0 is known", strict.Quote([]byte(root.version)))
	}
	images, err := d.readDisk(root)
	if err != nil {
		return d, err
	}
	if err := judgeSnapshots(root, images); err != nil {
		return d, err
	}
	return d, d.readImage(images[0])
}

// readDisk reads the size and the one storage, and returns its images.
func (d *Description) readDisk(root *node) ([]*node, error) {
	params, err := root.only("Disk_Parameters")
	if err != nil {
		return nil, err
	}
	if d.Sectors, err = params.number("Disk_size", maxSectors); err != nil {
		return nil, err
	}
	if d.Sectors == 0 {
		return nil, strict.Refuse(strict.Empty, "Disk_size says that the disk has no sectors")
	}
	for _, e := range params.all("Encryption") {
		if e.encrypts() {
			return nil, strict.Refuse(strict.Feature, "the disk is encrypted").WithHint("decrypt it with the program that made it")
		}
	}
	if pads := params.all("Padding"); len(pads) > 0 {
		if n, err := params.number("Padding", 1<<32); err != nil || n != 0 {
			return nil, strict.Refuse(strict.Feature, "Padding says that the disk is padded, which nothing documents")
		}
	}
	data, err := root.only("StorageData")
	if err != nil {
		return nil, err
	}
	if n := len(data.all("Storage")); n > 1 {
		return nil, strict.Refuse(strict.Feature, "the disk is split into %d storages", n).WithHint("merge it into one file with prl_disk_tool merge")
	}
	storage, err := data.only("Storage")
	if err != nil {
		return nil, err
	}
	return d.readStorage(storage)
}

func (d *Description) readStorage(storage *node) ([]*node, error) {
	start, err := storage.number("Start", maxSectors)
	if err != nil {
		return nil, err
	}
	end, err := storage.number("End", maxSectors)
	if err != nil {
		return nil, err
	}
	if start != 0 || end != d.Sectors {
		return nil, strict.Refuse(strict.Corrupt, "the storage has the sectors %d to %d of a disk of %d", start, end, d.Sectors)
	}
	block, err := storage.number("Blocksize", maxBlock)
	if err != nil {
		return nil, err
	}
	if block == 0 {
		return nil, strict.Refuse(strict.Corrupt, "Blocksize says that a cluster has no sectors")
	}
	d.BlockSize = block * sectorSize
	images := storage.all("Image")
	if len(images) == 0 {
		return nil, strict.Refuse(strict.Corrupt, "the storage has no Image")
	}
	return images, nil
}

// readImage reads what the one image is and where.
func (d *Description) readImage(image *node) error {
	kind, err := image.only("Type")
	if err != nil {
		return err
	}
	switch kind.text {
	case "Compressed":
	case "Plain":
		d.Plain = true
	default:
		return strict.Refuse(strict.Feature, "an image of the type %s (in hex) is not known", strict.Quote([]byte(kind.text)))
	}
	file, err := image.only("File")
	if err != nil {
		return err
	}
	if !safe(file.text) {
		return strict.Refuse(strict.External, "File is not the plain name of a file in the folder: %s (in hex)", strict.Quote([]byte(file.text)))
	}
	d.File = file.text
	return nil
}

// safe reports whether s is one component that names a file and nothing else.
func safe(s string) bool {
	const letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._{}-"
	return s != "" && len(s) <= 255 && strings.Trim(s, letters) == "" && strings.Trim(s, ".") != "" && s[0] != '-'
}

// judgeSnapshots refuses a tree of snapshots that contradicts itself, and then
// every one that has more than the one image.
func judgeSnapshots(root *node, images []*node) error {
	ids := map[string]bool{}
	for _, i := range images {
		id, err := i.guid("GUID")
		if err != nil {
			return err
		}
		if ids[id] {
			return strict.Refuse(strict.Corrupt, "two images have one GUID")
		}
		ids[id] = true
	}
	tree := &node{}
	if len(root.all("Snapshots")) > 0 {
		var err error
		if tree, err = root.only("Snapshots"); err != nil {
			return err
		}
	}
	parents, err := tree.parents()
	if err != nil {
		return err
	}
	if err := judgeTree(parents); err != nil {
		return err
	}
	if len(images) > 1 || len(parents) > 1 {
		return strict.Refuse(strict.Feature, "the disk has %d images and %d states: it has snapshots", len(images), len(parents)).
			WithHint("delete its snapshots first, with ploop snapshot-merge or prlctl snapshot-delete")
	}
	for id := range parents {
		if !ids[id] {
			return strict.Refuse(strict.Corrupt, "the GUID of the disk's state is not that of its image")
		}
	}
	if len(tree.all("TopGUID")) == 0 {
		return nil
	}
	top, err := tree.guid("TopGUID")
	if err == nil && !ids[top] {
		err = strict.Refuse(strict.Corrupt, "TopGUID does not name the image")
	}
	return err
}

// parents reads which state each state of the disk was made from.
func (n *node) parents() (map[string]string, error) {
	shots := n.all("Shot")
	if len(shots) > maxShots {
		return nil, strict.Refuse(strict.Limit, "%d snapshots; %d is the most", len(shots), maxShots)
	}
	parents := map[string]string{}
	for _, s := range shots {
		id, err := s.guid("GUID")
		if err != nil {
			return nil, err
		}
		if _, twice := parents[id]; twice || id == noParent {
			return nil, strict.Refuse(strict.Corrupt, "two snapshots have one GUID, or one has none")
		}
		if parents[id], err = s.guid("ParentGUID"); err != nil {
			return nil, err
		}
	}
	return parents, nil
}

// judgeTree refuses circles.
func judgeTree(parents map[string]string) error {
	rooted := map[string]bool{}
	for id := range parents {
		steps := 0
		for at := id; at != noParent && !rooted[at]; at = parents[at] {
			if _, known := parents[at]; !known {
				return strict.Refuse(strict.External, "a snapshot's parent is not in this disk")
			}
			if steps++; steps > len(parents) {
				return strict.Refuse(strict.Corrupt, "the snapshots go in a circle")
			}
		}
		for at := id; at != noParent && !rooted[at]; at = parents[at] {
			rooted[at] = true
		}
	}
	return nil
}

// number reads the only element name as a decimal number up to most.
func (n *node) number(name string, most int64) (int64, error) {
	e, err := n.only(name)
	if err != nil {
		return 0, err
	}
	v, err := strconv.ParseUint(e.text, 10, 63)
	if err != nil {
		return 0, strict.Refuse(strict.Corrupt, "%s is not a number: %s (in hex)", name, strict.Quote([]byte(e.text)))
	}
	if int64(v) > most {
		return 0, strict.Refuse(strict.Limit, "%s is %d; %d is the most", name, v, most)
	}
	return int64(v), nil
}

// guid reads the only element name as a UUID in curly brackets.
func (n *node) guid(name string) (string, error) {
	e, err := n.only(name)
	if err != nil {
		return "", err
	}
	id := strings.ToLower(e.text)
	good := len(id) == len(noParent)
	for i := 0; good && i < len(id); i++ {
		if want := noParent[i]; want == '0' {
			good = strings.IndexByte("0123456789abcdef", id[i]) >= 0
		} else {
			good = id[i] == want
		}
	}
	if !good {
		return "", strict.Refuse(strict.Corrupt, "%s is not a UUID in curly brackets: %s (in hex)", name, strict.Quote([]byte(e.text)))
	}
	return id, nil
}

// encrypts reports whether an Encryption element says anything: Parallels writes
// one with an engine of zeroes into disks that are not encrypted.
func (n *node) encrypts() bool {
	if n.text != "" && n.text != noParent {
		return true
	}
	for _, c := range n.children {
		if c.encrypts() {
			return true
		}
	}
	return false
}
