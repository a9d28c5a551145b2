package engine

import (
	"context"
	"encoding/hex"
	"errors"
	"io"
	"net/url"
	"slices"
	"strings"

	"github.com/tarn-storage/tarn/api"
	"github.com/tarn-storage/tarn/diskfmt"
	"github.com/tarn-storage/tarn/diskfmt/strict"
	"github.com/tarn-storage/tarn/diskfmt/unpack"
	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/disk"
	"github.com/tarn-storage/tarn/internal/fetch"
	"github.com/tarn-storage/tarn/internal/ingest"
	"github.com/tarn-storage/tarn/internal/journal"
	"github.com/tarn-storage/tarn/internal/signature"
	"github.com/tarn-storage/tarn/internal/store"
)

const (
	maxDescription = 64 << 10 // of a DiskDescriptor.xml
	maxProof       = 1 << 20  // of checksums, signature and key together
)

// claim is what is known of an image before its first byte is read: the request,
// completed by Glance's record and by its publisher's checksums.
type claim struct {
	Format         string            `json:"format"`
	SHA256         string            `json:"sha256,omitempty"`
	SHA512         string            `json:"sha512,omitempty"`
	Compression    string            `json:"compression,omitempty"`
	MaxVirtualSize int64             `json:"max_virtual_size,omitempty"`
	Signer         *signature.Signer `json:"signer,omitempty"` // of the checksums

	minDisk int64 // as Glance records it
}

func invalid(format string, args ...any) *errs.Error {
	return errs.New(errs.Invalid, "", "", format, args...)
}

// claim completes what a request says of an image and checks it. It asks Glance
// and fetches checksums where the request names them, but reads no byte of the
// image. The pool is the one that it is to be imported into, if any.
func (e *Engine) claim(ctx context.Context, format, sum string, d api.ImageDetails, into disk.Pool) (claim, error) {
	c := claim{Format: format, MaxVirtualSize: d.MaxVirtualSize, Compression: d.Compression}
	if c.Compression == "none" {
		c.Compression = ""
	}
	err := c.sum("sha256", sum)
	if err == nil {
		err = c.sum("sha512", d.SHA512)
	}
	if err == nil && d.URL != "" {
		err = e.remote(ctx, &c, d)
	}
	if err == nil {
		err = e.accepts(c, d, into)
	}
	if err == nil {
		err = e.prove(ctx, &c, d)
	}
	return c, err
}

// sum adds a digest that somebody says the bytes have. Two that differ cannot
// both be right.
func (c *claim) sum(algo, digest string) error {
	digest = strings.ToLower(digest)
	at, size, name := &c.SHA256, 32, "SHA-256"
	if algo == "sha512" {
		at, size, name = &c.SHA512, 64, "SHA-512"
	}
	if digest == "" {
		return nil
	}
	if b, err := hex.DecodeString(digest); err != nil || len(b) != size {
		return invalid("%q is not a %s in hex, which has %d digits", digest[:min(len(digest), 160)], name, 2*size)
	}
	if *at != "" && *at != digest {
		return strict.Refuse(strict.Checksum, "the image is said to have the %s %s and also %s", name, *at, digest).
			WithHint("leave the %s out to rely on the publisher's, or find out which is right", name)
	}
	*at = digest
	return nil
}

// remote checks where an image is fetched from. Glance's record completes the
// claim.
func (e *Engine) remote(ctx context.Context, c *claim, d api.ImageDetails) error {
	if !isGlance(d.URL) {
		return checkURL(d)
	}
	i, err := e.glance(ctx, d)
	if err != nil {
		return err
	}
	if c.Format != "" && c.Format != i.Format {
		return strict.Refuse(strict.Mismatch, "Glance records the format %s of %s, not %s", i.Format, i.Name(), c.Format).
			WithHint("leave --format out to take Glance's word, which is checked like yours")
	}
	c.Format, c.minDisk = i.Format, i.MinDisk
	return c.sum(i.HashAlgo, i.Hash)
}

func isGlance(source string) bool {
	return strings.HasPrefix(source, "glance://") || strings.HasPrefix(source, "glance+http://")
}

func checkURL(d api.ImageDetails) error {
	scheme, _, _ := strings.Cut(d.URL, "://")
	switch {
	case d.Cloud != "":
		return invalid("a cloud is for images in Glance, not for %s URLs", scheme)
	case scheme == "https":
		return nil
	case scheme == "http":
		return strict.Refuse(strict.External, "images are not fetched over http: anybody on the way could change them").
			WithHint("use https, or fetch the file by other means, compare its checksum and import the file")
	}
	return invalid("images are not fetched from %s URLs", scheme).WithHint("use https:// or glance://, or a file")
}

// cloud returns the credentials to ask Glance with: the named cloud's, or none.
func (e *Engine) cloud(name string) (fetch.Cloud, error) {
	c, ok := e.cfg.Clouds[name]
	if name == "" || ok {
		return c, nil
	}
	err := errs.New(errs.NotFound, "", "", "the daemon's configuration has no cloud %q", name)
	if len(e.cfg.Clouds) == 0 {
		return c, err.WithHint("set sources.clouds_file in the daemon's configuration")
	}
	names := make([]string, 0, len(e.cfg.Clouds))
	for n := range e.cfg.Clouds {
		names = append(names, n)
	}
	slices.Sort(names)
	return c, err.WithHint("it has %s", strings.Join(names, ", "))
}

func (e *Engine) glance(ctx context.Context, d api.ImageDetails) (*fetch.Image, error) {
	cloud, err := e.cloud(d.Cloud)
	if err != nil {
		return nil, err
	}
	return fetch.Glance(ctx, e.cfg.Fetch, cloud, d.URL)
}

// accepts checks the words of a claim, and the policies.
func (e *Engine) accepts(c claim, d api.ImageDetails, into disk.Pool) error {
	if c.Format == "" || c.Format == "auto" {
		return invalid("the format of an image is never guessed").WithHint("say what it is: one of %s", joined(diskfmt.ImageFormats()))
	}
	f, err := diskfmt.ParseImageFormat(c.Format)
	switch {
	case err != nil:
		return strict.Refuse(strict.Format, "%w", err)
	case len(e.cfg.Formats) > 0 && !slices.Contains(e.cfg.Formats, f):
		return strict.Refuse(strict.Format, "this daemon's policy (image_formats) does not accept images in %s", f).
			WithHint("it accepts %s", joined(e.cfg.Formats))
	case len(into.ImageFormats) > 0 && !slices.Contains(into.ImageFormats, f):
		return strict.Refuse(strict.Format, "pool %s does not accept images in %s, only in %s", into.Name, f, joined(into.ImageFormats)).
			WithHint("import it into another pool, or allow it here: tarn pool set %s --image-formats %s,%s", into.Name, strings.ReplaceAll(joined(into.ImageFormats), ", ", ","), f)
	case c.Compression != "" && !unpack.Known(c.Compression):
		return invalid("%q is no compression of images", c.Compression).WithHint("use none or one of %s", joined(unpack.Names()))
	case c.MaxVirtualSize < 0 || c.MaxVirtualSize > disk.MaxSize:
		return invalid("a virtual size of at most %d bytes cannot be", c.MaxVirtualSize)
	case len(d.Description) > 0 && f != diskfmt.Ploop:
		return invalid("a DiskDescriptor.xml belongs to images in ploop, not in %s", f)
	case len(d.Description) > maxDescription:
		return strict.Refuse(strict.Limit, "the DiskDescriptor.xml has %d bytes, more than %d", len(d.Description), maxDescription)
	}
	return nil
}

func joined[S ~string](words []S) string {
	var b strings.Builder
	for i, w := range words {
		if i > 0 {
			b.WriteString(", ")
		}
		b.WriteString(string(w))
	}
	return b.String()
}

// prove takes the image's digest from its publisher's checksums, whose
// signature is verified first, or checks that a signature over the image itself
// can be verified when its bytes are there.
func (e *Engine) prove(ctx context.Context, c *claim, d api.ImageDetails) error {
	sums := d.Checksums
	switch {
	case len(d.Checksums)+len(d.Signature)+len(d.SigningKey) > maxProof:
		return invalid("checksums, signature and key have more than %d bytes together", maxProof)
	case len(d.Signature) > 0 && len(d.SigningKey) == 0:
		return invalid("a signature says nothing without the key that it was made with").WithHint("add --signing-key")
	case len(sums) > 0 && d.ChecksumsURL != "":
		return invalid("the checksums were given twice")
	case len(sums) == 0 && d.ChecksumsURL == "":
		return e.unsummed(d)
	}
	if d.ChecksumsURL != "" {
		var err error
		if sums, err = e.fetchSums(ctx, d.ChecksumsURL); err != nil {
			return err
		}
	}
	if len(d.SigningKey) > 0 {
		var who signature.Signer
		var err error
		if len(d.Signature) > 0 {
			who, err = signature.Verify(d.SigningKey, d.Signature, sums, e.now())
		} else {
			sums, who, err = signature.Cleartext(d.SigningKey, sums, e.now())
		}
		if err != nil {
			return err
		}
		c.Signer = &who
	}
	all, err := signature.ParseSums(sums)
	if err != nil {
		return err
	}
	if d.File == "" {
		return invalid("the image has no file name to find in the checksums").WithHint("name a file or an https URL, or give the digest with --sha256")
	}
	found, err := all.Find(d.File)
	if err != nil {
		return err
	}
	return c.sum(found.Algo, found.Hex)
}

// unsummed checks a signature over the image itself.
func (e *Engine) unsummed(d api.ImageDetails) error {
	if len(d.SigningKey) == 0 {
		return nil
	}
	if len(d.Signature) == 0 {
		return invalid("a key verifies nothing without a signature").WithHint("add --signature")
	}
	_, err := signature.New(d.SigningKey, d.Signature, e.now())
	return err
}

func (e *Engine) fetchSums(ctx context.Context, source string) ([]byte, error) {
	s, err := fetch.Open(ctx, e.cfg.Fetch, source)
	if err != nil {
		return nil, err
	}
	defer s.Close()
	b, err := io.ReadAll(io.LimitReader(s, maxProof+1))
	if err == nil && len(b) > maxProof {
		err = invalid("%s has more than %d bytes", s.Name(), maxProof)
	}
	return b, err
}

// ImageInspect gives the gate's verdict on src without keeping anything.
func (e *Engine) ImageInspect(ctx context.Context, r api.ImageInspect, src ingest.Source) (v api.Verdict, err error) {
	name := sourceName(or(r.Source, src.Name), r.ImageDetails)
	v = api.Verdict{Verdict: "reject", Format: r.Format, Features: []string{}}
	c, err := e.claim(ctx, r.Format, r.SHA256, r.ImageDetails, disk.Pool{})
	if err == nil {
		v, err = e.inspect(ctx, r.ImageDetails, c, src)
	}
	var refused *errs.Error
	if errors.As(err, &refused) && refused.Kind == errs.Unsafe {
		v.Verdict, v.Error, v.Detail, v.Hint = "reject", refused.Class, refused.Message, refused.Hint
		return v, nil
	}
	return v, errs.Wrap(err, "image.inspect", name)
}

func (e *Engine) inspect(ctx context.Context, d api.ImageDetails, c claim, src ingest.Source) (api.Verdict, error) {
	o, err := e.open(ctx, d, c, src)
	if err != nil {
		return api.Verdict{Format: c.Format, Features: []string{}}, err
	}
	defer o.close()
	defer o.begin(ctx)()
	v, err := ingest.Inspect(ctx, e.cfg.Ingest, o.src, o.gate(c, 0))
	switch broken := o.broken(); {
	case err != nil:
		return v, o.because(err)
	case v.Verdict != "accept":
		return v, broken
	}
	_, err = o.verify(ctx, v.SourceSHA256)
	return v, err
}

// ImageImport judges an image's bytes, converts them to the pool's form and
// keeps them as an image. src is read until the operation has ended; it is empty
// when r has a URL. With IfAbsent an image of that name, which was imported with
// what r says of it, is as good; then src is not read.
func (e *Engine) ImageImport(ctx context.Context, o api.Options, r api.ImageImport, src ingest.Source) (api.Outcome, error) {
	name := sourceName(or(r.Source, src.Name), r.ImageDetails)
	if err := disk.CheckName("image", r.Name); err != nil {
		return api.Outcome{}, err
	}
	if r.MinDisk < 0 || r.MinDisk > disk.MaxSize {
		return api.Outcome{}, errs.New(errs.Invalid, "image.import", r.Name, "a minimum disk of %d bytes cannot be", r.MinDisk)
	}
	kept := r
	kept.ImageDetails, kept.Source = public(r.ImageDetails), name
	if out, err := e.seen(ctx, o, "image.import", kept); out != nil || err != nil {
		return answer(out, err)
	}
	out, err := e.imageImport(ctx, o, r, kept, name, src)
	if err != nil && r.IfAbsent {
		return e.ifAbsent(ctx, o, "image.import", r.Name, kept, err, sameImage(r))
	}
	return out, err
}

func (e *Engine) imageImport(ctx context.Context, o api.Options, r, kept api.ImageImport, name string, src ingest.Source) (api.Outcome, error) {
	p, err := query(ctx, e, func(ctx context.Context, tx *store.Tx) (disk.Pool, error) { return e.choosePool(ctx, tx, r.Pool) })
	if err != nil {
		return api.Outcome{}, err
	}
	if _, err := e.pool(p); err != nil {
		return api.Outcome{}, err
	}
	c, err := e.claim(ctx, r.Format, r.SHA256, r.ImageDetails, p)
	if err != nil {
		return api.Outcome{}, errs.Wrap(err, "image.import", or(name, r.Name))
	}
	now := e.now()
	i := disk.Image{ID: disk.ImageID(newID()), Name: r.Name, State: disk.ImageCreating, Format: diskfmt.Format(c.Format), MinDisk: max(r.MinDisk, c.minDisk),
		Source: imageSource(name, kept.ImageDetails, c), CreatedAt: now, UpdatedAt: now}
	a := importArgs{Image: i.ID, Volume: disk.VolumeID(newID()), Pool: p.ID, Domain: p.DomainID, claim: c}
	d := newDraft("image.import", imageSubject(i))
	d.request, d.resources = kept, []string{"image:" + string(i.ID)}
	d.steps = []journal.Step{journal.NewStep(stepImageJudge, a), journal.NewStep(stepImageConvert, a), journal.NewStep(stepBasePublish, a),
		journal.NewStep(stepImageReady, a), journal.NewStep(stepSidecars, sidecarArgs{Images: []disk.ImageID{i.ID}})}
	d.notes = []string{"judges, digests and converts " + or(name, "the source") + " into pool " + p.Name}
	d.intent = func(ctx context.Context, tx *store.Tx) error { return tx.Images.Insert(ctx, i) }
	if !o.DryRun {
		e.imports.put(d.id, source{given: src, details: r.ImageDetails})
	}
	out, err := e.submit(ctx, o, d)
	if err != nil {
		e.imports.drop(d.id)
	}
	return out, err
}

// public is d without URLs that may carry a secret: those with a user or a
// query. It is what is kept; an import from such a URL is not started again.
func public(d api.ImageDetails) api.ImageDetails {
	for _, u := range []*string{&d.URL, &d.ChecksumsURL} {
		if p, err := url.Parse(*u); err != nil || p.User != nil || p.RawQuery != "" || p.Fragment != "" {
			*u = ""
		}
	}
	return d
}

// sourceName is what messages call an image's source.
func sourceName(given string, d api.ImageDetails) string {
	if d.URL == "" {
		return given
	}
	p, err := url.Parse(d.URL)
	if err != nil {
		return "the URL"
	}
	return (&url.URL{Scheme: p.Scheme, Host: p.Host, Path: p.Path}).String()
}
