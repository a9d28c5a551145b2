package api

import (
	"time"
)

// Image is immutable content delivered by an image source.
type Image struct {
	ID           string       `json:"id"`
	Name         string       `json:"name"`
	State        string       `json:"state"`
	Format       string       `json:"format"`
	VirtualSize  int64        `json:"virtual_size"`
	MinDisk      int64        `json:"min_disk"`
	SourceSHA256 string       `json:"source_sha256"`
	Content      string       `json:"content"`
	Verified     []string     `json:"verified,omitempty"` // checksums that the bytes had to have: sha256:HEX, sha512:HEX
	Signed       *ImageSigned `json:"signed,omitempty"`
	Source       *ImageSource `json:"source,omitempty"`
	Bases        []ImageBase  `json:"bases"`
	CreatedAt    time.Time    `json:"created_at"`
	UpdatedAt    time.Time    `json:"updated_at"`
}

// ImageSource is where an image came from. A URL can be fetched again; one with a
// user or a query is not kept. Name is what the bytes that came with the call were
// called.
type ImageSource struct {
	URL         string `json:"url,omitempty"`
	Cloud       string `json:"cloud,omitempty"`
	Name        string `json:"name,omitempty"`
	Compression string `json:"compression,omitempty"`
}

// ImageBase is one pool's copy of an image.
type ImageBase struct {
	Volume string `json:"volume"`
	Pool   string `json:"pool"`
	State  string `json:"state"`
	Format string `json:"format"`
}

// ImageImport asks to import the bytes that come with the call.
type ImageImport struct {
	Name    string `json:"name"`
	Format  string `json:"format"`
	SHA256  string `json:"sha256,omitempty"`
	MinDisk int64  `json:"min_disk,omitempty"`
	Pool    string `json:"pool,omitempty"`
	Source  string `json:"source,omitempty"` // how the user named it, for messages

	IfAbsent bool `json:"if_absent,omitempty"`
	ImageDetails
}

// ImageDetails is what else may be said of an image's bytes. URL has the daemon
// fetch them, https://... or glance://..., with the credentials of the
// configured Cloud; then none come with the call. A signature is over the
// checksums when there are any, else over the bytes; checksums without one may
// carry it within.
type ImageDetails struct {
	Compression    string `json:"compression,omitempty"` // gzip, xz, zstd, bzip2
	SHA512         string `json:"sha512,omitempty"`
	MaxVirtualSize int64  `json:"max_virtual_size,omitempty"` // 0 is 64 TiB
	URL            string `json:"url,omitempty"`
	Cloud          string `json:"cloud,omitempty"`
	Description    []byte `json:"description,omitempty"` // a ploop image's DiskDescriptor.xml
	File           string `json:"file,omitempty"`        // the bytes' name in the checksums
	Checksums      []byte `json:"checksums,omitempty"`   // as a SHA256SUMS
	ChecksumsURL   string `json:"checksums_url,omitempty"`
	Signature      []byte `json:"signature,omitempty"`
	SigningKey     []byte `json:"signing_key,omitempty"`
}

// Unchanged is the result of an operation that had nothing to do: what was asked
// for was so already.
type Unchanged struct {
	Unchanged bool `json:"unchanged"`
}

// ImageSigned says who signed an image: the result of an import whose signature
// was verified. Name and comment are the signer's own words.
type ImageSigned struct {
	Over    string    `json:"over"`   // image, checksums
	Scheme  string    `json:"scheme"` // minisign, openpgp
	KeyID   string    `json:"key_id"`
	Name    string    `json:"name,omitempty"`
	Comment string    `json:"comment,omitempty"`
	Time    time.Time `json:"time,omitzero"`
}

// ImageInspect asks for the gate's verdict on the bytes that come with the call.
type ImageInspect struct {
	Format string `json:"format"`
	SHA256 string `json:"sha256,omitempty"`
	Source string `json:"source,omitempty"`
	ImageDetails
}

// Verdict is what the gate says of an image.
type Verdict struct {
	Verdict      string   `json:"verdict"` // accept, reject
	Error        string   `json:"error,omitempty"`
	Detail       string   `json:"detail,omitempty"`
	Hint         string   `json:"hint,omitempty"`
	Format       string   `json:"format"`
	VirtualSize  int64    `json:"virtual_size"`
	Features     []string `json:"features"`
	SourceSHA256 string   `json:"source_sha256,omitempty"`
	Content      string   `json:"content,omitempty"`
}

// CacheEntry is one base.
type CacheEntry struct {
	Volume      string    `json:"volume"`
	Pool        string    `json:"pool"`
	Images      []string  `json:"images"`
	Content     string    `json:"content"`
	Format      string    `json:"format"`
	State       string    `json:"state"`
	VirtualSize int64     `json:"virtual_size"`
	Allocated   int64     `json:"allocated"`
	Extents     int64     `json:"extents"`
	References  int       `json:"references"` // volumes that read from it
	Pinned      bool      `json:"pinned"`
	CreatedAt   time.Time `json:"created_at"`
	UpdatedAt   time.Time `json:"updated_at"` // last use
}

// CacheAdd asks to put an image's base into a pool. A pinned one is not removed
// with age.
type CacheAdd struct {
	Image string `json:"image"`
	Pool  string `json:"pool"`
	Pin   bool   `json:"pin,omitempty"`
}

// CacheUnpin asks to let age decide about an image's base in a pool again.
type CacheUnpin struct {
	Image string `json:"image"`
	Pool  string `json:"pool"`
}

// CachePrune asks to remove bases that nothing refers to. OlderThan is a Go
// duration since the last use.
type CachePrune struct {
	OlderThan string `json:"older_than,omitempty"`
	Pool      string `json:"pool,omitempty"`
}
