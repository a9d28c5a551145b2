package bundle

import (
	"bytes"
	"encoding/xml"

	"github.com/tarn-storage/tarn/errs"
)

// Chain is a disk whose images are layers of one folder, as ploop's snapshots
// make them: what the records of a pool of such folders say of a disk. Sizes are
// bytes and multiples of 512.
type Chain struct {
	Size      int64
	Resizing  int64 // the size that the disk is being brought to, 0: none
	BlockSize int64
	Layers    []Layer // the lowest first; the last is the disk as it is
}

// Layer is one image.
type Layer struct {
	File    string
	GUID    string // in lower case, without brackets
	Size    int64
	Merging bool // its state is given up and the layer above is being written into it
}

// Top is the GUID of the disk as it is: ploop's.
const Top = "5fbaabe3-6958-40ff-92a7-860e329aab41"

// The document, whose unknown elements Resizing, Sectors of an Image and Merging
// other programs leave aside (prl-xml.rst).
type (
	document struct {
		XMLName xml.Name  `xml:"Parallels_disk_image"`
		Version string    `xml:"Version,attr"`
		Disk    diskPart  `xml:"Disk_Parameters"`
		Storage storage   `xml:"StorageData>Storage"`
		Shots   snapshots `xml:"Snapshots"`
	}
	diskPart struct {
		Size      int64 `xml:"Disk_size"`
		Cylinders int64 `xml:"Cylinders"`
		Heads     int64 `xml:"Heads"`
		Sectors   int64 `xml:"Sectors"`
		Padding   int64 `xml:"Padding"`
	}
	storage struct {
		Start    int64   `xml:"Start"`
		End      int64   `xml:"End"`
		Resizing int64   `xml:"Resizing,omitempty"`
		Block    int64   `xml:"Blocksize"`
		Images   []image `xml:"Image"`
	}
	image struct {
		GUID    string    `xml:"GUID"`
		Type    string    `xml:"Type"`
		File    string    `xml:"File"`
		Sectors int64     `xml:"Sectors"`
		Merging *struct{} `xml:"Merging"`
	}
	snapshots struct {
		Top   string `xml:"TopGUID"`
		Shots []shot `xml:"Shot"`
	}
	shot struct {
		GUID   string `xml:"GUID"`
		Parent string `xml:"ParentGUID"`
	}
)

// Bytes writes the description. The chain must be one that ParseChain returns,
// or be made by its rules.
func (c Chain) Bytes() []byte {
	s := c.Size / sectorSize
	d := document{
		Version: "1.0", Disk: diskPart{Size: s, Cylinders: s / (16 * 32), Heads: 16, Sectors: 32},
		Storage: storage{End: s, Resizing: c.Resizing / sectorSize, Block: c.BlockSize / sectorSize},
		Shots:   snapshots{Top: "{" + Top + "}"},
	}
	parent := noParent
	for _, l := range c.Layers {
		i := image{GUID: "{" + l.GUID + "}", Type: "Compressed", File: l.File, Sectors: l.Size / sectorSize}
		if l.Merging {
			i.Merging = &struct{}{}
		}
		d.Storage.Images = append(d.Storage.Images, i)
		d.Shots.Shots = append(d.Shots.Shots, shot{i.GUID, parent})
		parent = i.GUID
	}
	b, _ := xml.MarshalIndent(d, "", "    ") // plain data: cannot fail
	return append([]byte(xml.Header), append(b, '\n')...)
}

// ParseChain reads what Bytes wrote, and nothing else: whatever Bytes would not
// write again, byte for byte, is errs.Corrupt.
func ParseChain(b []byte) (Chain, error) {
	var d document
	corrupt := func(why string) (Chain, error) {
		return Chain{}, errs.New(errs.Corrupt, "parallels.bundle", Name, "the description is not as it was written: %s", why)
	}
	if len(b) > MaxSize {
		return corrupt("it is too long")
	}
	if _, err := readTree(b); err != nil { // which refuses what could make the decoder work
		return corrupt(err.Error())
	}
	if err := xml.Unmarshal(b, &d); err != nil {
		return corrupt("it is no such document")
	}
	c := Chain{Size: d.Disk.Size * sectorSize, Resizing: d.Storage.Resizing * sectorSize, BlockSize: d.Storage.Block * sectorSize}
	seen := map[string]bool{}
	for _, i := range d.Storage.Images {
		l := Layer{File: i.File, Size: i.Sectors * sectorSize, Merging: i.Merging != nil}
		if len(i.GUID) == len(noParent) {
			l.GUID = i.GUID[1 : len(i.GUID)-1]
		}
		if !safe(l.File) || seen[l.File] || seen[i.GUID] || l.Size < 0 || i.Sectors > maxSectors {
			return corrupt("an image of it cannot be")
		}
		seen[l.File], seen[i.GUID] = true, true
		c.Layers = append(c.Layers, l)
	}
	last := len(c.Layers) - 1
	switch {
	case last < 0 || last > maxShots:
		return corrupt("it has no image, or too many")
	case c.Layers[last].GUID != Top || c.Layers[last].Merging || c.Layers[last].Size != c.Size:
		return corrupt("its last image is not the disk")
	case d.Disk.Size < 0 || d.Disk.Size > maxSectors || d.Storage.Resizing < 0 || d.Storage.Resizing > maxSectors || d.Storage.Block <= 0 || d.Storage.Block > maxBlock:
		return corrupt("a size in it cannot be")
	case !bytes.Equal(c.Bytes(), b):
		return corrupt("it says the same in other words")
	}
	return c, nil
}
