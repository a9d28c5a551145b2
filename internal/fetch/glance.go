package fetch

import (
	"context"
	"encoding/hex"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"

	"github.com/tarn-storage/tarn/errs"
)

// Image is what Glance records of an image. The caller enforces it: Glance
// believes whoever uploaded the bytes. It is not safe for concurrent use.
type Image struct {
	ID          string
	Format      string // raw, qcow2, vmdk, vhd, vhdx, vdi, iso, ploop, luks or ova
	Size        int64  // of the bytes; -1 unknown
	VirtualSize int64  // in bytes; -1 unknown
	MinDisk     int64  // in bytes; 0 when any disk will do
	HashAlgo    string // sha256 or sha512; empty when Glance has no digest
	Hash        string // in lower-case hexadecimal digits

	name    string
	file    *url.URL
	session *session
}

// Name is the image's address for messages, without anything secret.
func (i *Image) Name() string { return i.name }

// record is the part of Glance's image that is used (Image service API v2,
// "Show image").
type record struct {
	ID              string
	Status          string
	DiskFormat      string `json:"disk_format"`
	ContainerFormat string `json:"container_format"`
	Size            *int64
	VirtualSize     *int64 `json:"virtual_size"`
	MinDisk         int64  `json:"min_disk"`
	HashAlgo        string `json:"os_hash_algo"`
	HashValue       string `json:"os_hash_value"`
}

var imageID = regexp.MustCompile(`^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$`)

// Glance asks Glance v2 for the record of the image that source names:
//
//	glance://HOST[:PORT][/PATH]/IMAGE-ID        Glance there, by https
//	glance+http://HOST[:PORT][/PATH]/IMAGE-ID   the same by http, where Config.PlainHTTP allows it
//	glance:///IMAGE-ID                          where cloud or its catalogue says
//
// With credentials in cloud, an endpoint in source must be one that the cloud
// itself names: a token goes nowhere else. Errors are those of Open, and
// errs.Conflict when the image is not active, errs.Unsupported for a format or
// digest that is not accepted.
func Glance(ctx context.Context, cfg Config, cloud Cloud, source string) (*Image, error) {
	endpoint, id, err := parseSource(source)
	if err != nil {
		return nil, errs.Wrap(err, op, "")
	}
	s := &session{cfg: cfg.withDefaults(), cloud: cloud}
	name := "image " + id
	if err := s.login(ctx); err != nil {
		return nil, errs.Wrap(err, op, name)
	}
	if endpoint, err = s.endpoint(endpoint); err != nil {
		return nil, errs.Wrap(err, op, name)
	}
	at := join(endpoint, "v2", "images", id)
	name = "image " + id + " at " + nameOf(endpoint)
	var r record
	if _, err := s.cfg.call(ctx, request{method: http.MethodGet, url: at, private: s.header()}, maxRecord, &r); err != nil {
		return nil, errs.Wrap(err, op, name)
	}
	i, err := r.image()
	if err != nil {
		return nil, errs.Wrap(err, op, name)
	}
	if !strings.EqualFold(r.ID, id) {
		return nil, errs.New(errs.Unavailable, op, name, "Glance answers with the record of another image")
	}
	i.ID, i.name, i.file, i.session = id, name, join(at, "file"), s
	return i, nil
}

// Open opens the image's bytes as Open does for a URL. Glance's images never
// change, so that a broken download continues without asking for a version
// when the record has a digest, which proves the whole at the end.
func (i *Image) Open(ctx context.Context) (*Stream, error) {
	s, err := openStream(ctx, i.session.cfg, object{
		url: i.file, name: i.name, size: i.Size, immutable: i.Hash != "", private: i.session.renew,
	})
	return s, errs.Wrap(err, op, i.name)
}

// parseSource returns the endpoint, nil for the cloud's own, and the image.
func parseSource(source string) (*url.URL, string, error) {
	bad := func(format string, args ...any) error {
		return fail(errs.Invalid, format, args...).WithHint("write glance://HOST[:PORT]/IMAGE-ID, or glance:///IMAGE-ID for the configured cloud")
	}
	u, err := url.Parse(source)
	if err != nil {
		return nil, "", bad("the source is not a valid URL")
	}
	scheme, ok := map[string]string{"glance": "https", "glance+http": "http"}[u.Scheme]
	if !ok || u.Opaque != "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return nil, "", bad("the source is not the address of an image in Glance")
	}
	path, id := u.Path[:strings.LastIndexByte(u.Path, '/')+1], u.Path[strings.LastIndexByte(u.Path, '/')+1:]
	if !imageID.MatchString(id) {
		return nil, "", bad("the source does not end in the id of an image")
	}
	if u.Host == "" {
		if path != "/" || scheme != "https" {
			return nil, "", bad("the source names no host")
		}
		return nil, id, nil
	}
	e, err := parseURL((&url.URL{Scheme: scheme, Host: u.Host, Path: path}).String())
	return trimmed(e), id, err
}

// trimmed is an endpoint without the version that some catalogues have in it.
func trimmed(u *url.URL) *url.URL {
	if u == nil {
		return nil
	}
	return &url.URL{Scheme: u.Scheme, Host: u.Host, Path: strings.TrimSuffix(strings.TrimSuffix(u.Path, "/"), "/v2")}
}

// endpoint chooses where Glance is asked: at the source's endpoint, which a
// token limits to the cloud's own, or at the first of those.
func (s *session) endpoint(named *url.URL) (*url.URL, error) {
	own := s.endpoints
	same := func(u *url.URL) bool { return origin(u) == origin(named) && trimmed(u).Path == named.Path }
	switch {
	case named == nil && len(own) == 0 && s.cloud.anonymous():
		return nil, fail(errs.Invalid, "no cloud is configured whose Glance could be asked").WithHint("write glance://HOST[:PORT]/IMAGE-ID")
	case named == nil && len(own) == 0:
		return nil, fail(errs.Invalid, "the cloud's catalogue has no image service for this region and interface").
			WithHint("set region_name and interface, or image_endpoint_override")
	case named == nil:
		return trimmed(own[0]), nil
	case s.token == "" || slices.ContainsFunc(own, same):
		return named, nil
	}
	return nil, refuse("%s is not an image service of the configured cloud, and its token goes nowhere else", named.Host).
		WithHint("write glance:///IMAGE-ID to use the cloud's own image service")
}

// image checks a record and puts it into the project's words.
func (r record) image() (*Image, error) {
	if r.Status != "active" {
		return nil, fail(errs.Conflict, "the image is %q, not active", r.Status).WithHint("wait until its upload has ended")
	}
	i := &Image{Size: -1, VirtualSize: -1, MinDisk: r.MinDisk << 30, HashAlgo: r.HashAlgo, Hash: strings.ToLower(r.HashValue)}
	if r.Size != nil {
		i.Size = *r.Size
	}
	if r.VirtualSize != nil {
		i.VirtualSize = *r.VirtualSize
	}
	if r.MinDisk < 0 || r.MinDisk > 1<<32 || i.Size < -1 || i.VirtualSize < -1 {
		return nil, fail(errs.Invalid, "the image's record has a size that cannot be")
	}
	format, err := r.format()
	if err != nil {
		return nil, err
	}
	i.Format = format
	if r.HashAlgo == "" && r.HashValue == "" {
		return i, nil
	}
	bytes, ok := map[string]int{"sha256": 32, "sha512": 64}[r.HashAlgo]
	if !ok {
		return nil, fail(errs.Unsupported, "the image's digest is made with %q, which is not accepted", r.HashAlgo).
			WithHint("sha256 and sha512 are; Glance makes the digest when the image is uploaded")
	}
	if b, err := hex.DecodeString(r.HashValue); err != nil || len(b) != bytes {
		return nil, fail(errs.Invalid, "the image's record has a digest that is no %s", r.HashAlgo)
	}
	return i, nil
}

// format is the format that the record states.
func (r record) format() (string, error) {
	disk := []string{"raw", "qcow2", "vmdk", "vhd", "vhdx", "vdi", "iso", "ploop", "luks"}
	switch {
	case r.ContainerFormat == "ova":
		return "ova", nil
	case r.ContainerFormat != "bare":
		return "", fail(errs.Unsupported, "the image's container format is %q", r.ContainerFormat).WithHint("bare and ova are accepted")
	case r.DiskFormat == "gpt": // a raw disk with a GPT
		return "raw", nil
	case slices.Contains(disk, r.DiskFormat):
		return r.DiskFormat, nil
	}
	return "", fail(errs.Unsupported, "the image's disk format is %q", r.DiskFormat).WithHint("accepted are %s", strings.Join(disk, ", "))
}
