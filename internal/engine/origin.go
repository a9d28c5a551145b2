package engine

import (
	"context"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"errors"
	"hash"
	"io"
	"os"
	"sync"
	"time"

	"github.com/tarn-storage/tarn/api"
	"github.com/tarn-storage/tarn/diskfmt/strict"
	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/fetch"
	"github.com/tarn-storage/tarn/internal/ingest"
	"github.com/tarn-storage/tarn/internal/signature"
)

// origin is where an image's bytes come from, opened: the caller's descriptor or
// stream, or what the daemon fetches.
type origin struct {
	src    ingest.Source
	stream *watched // of src, if it is one
	remote *fetch.Stream
	check  *check // nil: the gate's own digest is enough
}

// open opens what r says, as claimed. The caller must close it; it does not
// outlive ctx.
func (e *Engine) open(ctx context.Context, d api.ImageDetails, c claim, src ingest.Source) (*origin, error) {
	o := &origin{src: src}
	o.src.Description = d.Description
	var err error
	if d.URL != "" {
		if o.remote, err = e.fetch(ctx, d, c); err != nil {
			return nil, err
		}
		o.src = ingest.Source{Stream: o.remote, Size: o.remote.Size(), Name: o.remote.Name()}
	}
	if o.check, err = newCheck(c, d, e.now()); err != nil {
		o.close()
		return nil, err
	}
	if f := o.src.File; f != nil && o.check != nil {
		if fi, err := f.Stat(); err == nil && !fi.Mode().IsRegular() && o.src.Name == ingest.Stdin {
			o.src.File, o.src.Stream = nil, f // its bytes come once
		}
	}
	if o.src.Stream != nil {
		o.stream = &watched{r: o.src.Stream}
		o.src.Stream = o.stream
		if o.check != nil {
			o.src.Stream = o.check.tee(o.stream)
		}
	}
	return o, nil
}

// fetch opens a remote source. What Glance records must not have changed since
// it was claimed.
func (e *Engine) fetch(ctx context.Context, d api.ImageDetails, c claim) (*fetch.Stream, error) {
	if !isGlance(d.URL) {
		return fetch.Open(ctx, e.cfg.Fetch, d.URL)
	}
	i, err := e.glance(ctx, d)
	if err != nil {
		return nil, err
	}
	if i.Format != c.Format {
		return nil, strict.Refuse(strict.Mismatch, "Glance now records the format %s of %s, not %s", i.Format, i.Name(), c.Format)
	}
	if err := c.sum(i.HashAlgo, i.Hash); err != nil {
		return nil, err
	}
	return i.Open(ctx)
}

// gate is a claim of the source in the gate's words; one that does not announce
// its size may have at most unannounced bytes.
func (o *origin) gate(c claim, unannounced int64) ingest.Claim {
	return ingest.Claim{Format: c.Format, Compression: c.Compression, SHA256: c.SHA256, Promised: o.check != nil, MaxVirtualSize: c.MaxVirtualSize, MaxUnannounced: unannounced}
}

func (o *origin) close() {
	if o.remote != nil {
		o.remote.Close()
	}
}

// because returns why the gate failed with err: a source that broke off says
// it better.
func (o *origin) because(err error) error {
	if broken := o.broken(); err != nil && broken != nil {
		return broken
	}
	return err
}

// broken returns how a stream failed that says so itself, nil for others.
func (o *origin) broken() error {
	if o.stream == nil {
		return nil
	}
	err := o.stream.failed()
	var typed *errs.Error
	if errors.As(err, &typed) {
		return err
	}
	return nil
}

// watched is a stream that remembers how it failed.
type watched struct {
	r   io.Reader
	mu  sync.Mutex
	err error
}

// Read reads as an io.Reader does.
func (w *watched) Read(p []byte) (int, error) {
	n, err := w.r.Read(p)
	if err != nil && err != io.EOF {
		w.mu.Lock()
		w.err = err
		w.mu.Unlock()
	}
	return n, err
}

func (w *watched) failed() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.err
}

// check digests the delivered bytes in this process, because a signature is not
// to rest on a worker's word.
type check struct {
	claim          claim
	sha256, sha512 hash.Hash
	signed         *signature.Verifier // over the image; nil: none
	done           chan struct{}       // closed when all bytes were digested, or err is set
	err            error
}

// newCheck returns the check that a claim asks for, nil for none.
func newCheck(c claim, d api.ImageDetails, now time.Time) (*check, error) {
	k := &check{claim: c, sha256: sha256.New(), done: make(chan struct{})}
	if c.SHA512 != "" {
		k.sha512 = sha512.New()
	}
	if len(d.Signature) > 0 && c.Signer == nil {
		var err error
		if k.signed, err = signature.New(d.SigningKey, d.Signature, now); err != nil {
			return nil, err
		}
	}
	if k.sha512 == nil && k.signed == nil && c.Signer == nil {
		return nil, nil
	}
	return k, nil
}

// Write takes the next bytes. It does not fail.
func (k *check) Write(p []byte) (int, error) {
	k.sha256.Write(p)
	if k.sha512 != nil {
		k.sha512.Write(p)
	}
	if k.signed != nil {
		k.signed.Write(p)
	}
	return len(p), nil
}

// tee digests what is read from r.
func (k *check) tee(r io.Reader) io.Reader { return &tee{r, k} }

type tee struct {
	r io.Reader
	k *check
}

// Read reads as an io.Reader does.
func (t *tee) Read(p []byte) (int, error) {
	n, err := t.r.Read(p)
	t.k.Write(p[:n])
	if err == io.EOF {
		close(t.k.done) // nobody reads on
	}
	return n, err
}

// read digests a regular file beside the conversion, until ctx ends.
func (k *check) read(ctx context.Context, f *os.File) {
	defer close(k.done)
	fi, err := f.Stat()
	if err != nil {
		k.err = err
		return
	}
	buf := make([]byte, 1<<20)
	r := io.NewSectionReader(f, 0, fi.Size())
	for k.err == nil {
		if k.err = ctx.Err(); k.err != nil {
			return
		}
		n, err := r.Read(buf)
		k.Write(buf[:n])
		if err == io.EOF {
			return
		}
		k.err = err
	}
}

// begin starts the digest of a source that is a file, and returns what stops
// it.
func (o *origin) begin(ctx context.Context) context.CancelFunc {
	ctx, cancel := context.WithCancel(ctx)
	if o.check != nil && o.src.File != nil {
		go o.check.read(ctx, o.src.File)
	}
	return cancel
}

// verify says who signed the bytes, nil when nobody was asked for, and refuses
// them when they are not what was claimed. The gate says that it has read bytes
// with the SHA-256 delivered.
func (o *origin) verify(ctx context.Context, delivered string) (*signature.Signer, error) {
	k := o.check
	if k == nil {
		return nil, nil
	}
	if o.src.File != nil {
		select {
		case <-k.done:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	select {
	case <-k.done:
	default:
		return nil, errs.New(errs.Unavailable, "", "", "the confined worker cannot be trusted: it did not read all")
	}
	if k.err != nil {
		return nil, k.err
	}
	return k.verdict(delivered)
}

func (k *check) verdict(delivered string) (*signature.Signer, error) {
	const hint = "fetch the image again and compare with its publisher's checksum"
	got := hex.EncodeToString(k.sha256.Sum(nil))
	if got != delivered {
		return nil, strict.Refuse(strict.Checksum, "the bytes changed while they were read").WithHint("try again when nobody writes the file")
	}
	if want := k.claim.SHA256; want != "" && want != got {
		return nil, strict.Refuse(strict.Checksum, "the bytes have the SHA-256 %s, not %s", got, want).WithHint(hint)
	}
	if k.sha512 != nil {
		if got := hex.EncodeToString(k.sha512.Sum(nil)); got != k.claim.SHA512 {
			return nil, strict.Refuse(strict.Checksum, "the bytes have the SHA-512 %s, not %s", got, k.claim.SHA512).WithHint(hint)
		}
	}
	if k.signed == nil {
		return k.claim.Signer, nil
	}
	who, err := k.signed.Verify()
	return &who, err
}
