package engine_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/crypto/blake2b"

	"github.com/tarn-storage/tarn/api"
	"github.com/tarn-storage/tarn/diskfmt"
	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/engine"
	"github.com/tarn-storage/tarn/internal/fetch"
	"github.com/tarn-storage/tarn/internal/ingest"
)

// origin is an https server on the loopback interface with one image.
type origin struct {
	*httptest.Server
	data     []byte
	cut      atomic.Int64 // so many answers end early
	ranges   atomic.Int64 // requests that continued
	requests atomic.Int64
	hold     chan struct{} // when not nil: bytes behind a third wait for it
}

func newOrigin(t testing.TB, data []byte) *origin {
	o := &origin{data: data}
	o.Server = httptest.NewUnstartedServer(o)
	o.Config.ErrorLog = log.New(io.Discard, "", 0)
	o.StartTLS()
	t.Cleanup(o.Close)
	return o
}

// ServeHTTP serves /disk.raw, /SHA256SUMS, the image in ways that are wrong, and
// nothing else.
func (o *origin) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	etag := `"one"`
	switch r.URL.Path {
	case "/unversioned.raw":
		etag = ""
	case "/changing.raw":
		etag = fmt.Sprintf("%q", fmt.Sprint(o.requests.Load()))
	case "/more.raw":
		o.more(w)
		return
	case "/SHA256SUMS":
		fmt.Fprintf(w, "%x *disk.raw\n", sha256.Sum256(o.data))
		return
	case "/disk.raw":
	default:
		http.NotFound(w, r)
		return
	}
	o.requests.Add(1)
	if r.Header.Get("Range") != "" {
		o.ranges.Add(1)
	}
	if etag != "" {
		w.Header().Set("ETag", etag)
	}
	third := len(o.data) / 3
	if o.cut.Add(-1) >= 0 {
		w = &short{w, third / 10}
	}
	if o.hold != nil {
		w = &held{w, third, o.hold, r.Context()}
	}
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(o.data))
}

// more answers with 100 bytes more than it announces.
func (o *origin) more(w http.ResponseWriter) {
	conn, _, err := w.(http.Hijacker).Hijack()
	if err != nil {
		panic(err)
	}
	defer conn.Close()
	fmt.Fprintf(conn, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n", len(o.data)-100)
	_, _ = conn.Write(o.data) // the client may hang up at any time
}

// short ends an answer early.
type short struct {
	http.ResponseWriter
	left int
}

func (s *short) Write(p []byte) (int, error) {
	n, err := s.ResponseWriter.Write(p[:min(len(p), s.left)])
	if s.left -= n; err == nil && s.left == 0 {
		s.ResponseWriter.(http.Flusher).Flush()
		panic(http.ErrAbortHandler)
	}
	return n, err
}

// held keeps an answer back behind its first bytes.
type held struct {
	http.ResponseWriter
	left   int
	resume chan struct{}
	ctx    context.Context
}

func (h *held) Write(p []byte) (int, error) {
	n, err := h.ResponseWriter.Write(p[:min(len(p), max(h.left, 0))])
	if h.left -= n; err != nil || n == len(p) {
		return n, err
	}
	h.ResponseWriter.(http.Flusher).Flush()
	select {
	case <-h.resume:
	case <-h.ctx.Done():
		return n, h.ctx.Err()
	}
	h.left = 1 << 62
	m, err := h.Write(p[n:])
	return n + m, err
}

// reach has an engine trust the server.
func (o *origin) reach(c *engine.Config) {
	c.Fetch = fetch.Config{Allow: []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")}, Roots: x509.NewCertPool(), Backoff: time.Millisecond}
	c.Fetch.Roots.AddCert(o.Certificate())
}

func noise(n int) []byte {
	b := make([]byte, n)
	rand.Read(b)
	copy(b, "\xeb\x3c\x90tarn") // what chance writes there may look like something else
	return b
}

func (b *bench) fetched(name string, d api.ImageDetails) (api.Outcome, error) {
	return b.ImageImport(context.Background(), api.Options{}, api.ImageImport{Name: name, Format: "raw", ImageDetails: d}, ingest.Source{})
}

// refused returns why a call, or its operation, failed.
func (b *bench) refused(out api.Outcome, err error) api.Error {
	b.t.Helper()
	if err != nil {
		return api.ErrorOf(err)
	}
	op := b.do(out, nil)
	if op.Error == nil {
		b.t.Fatalf("%s ended as %s, want a refusal", op.Kind, op.State)
	}
	return *op.Error
}

// empty asks that an import which was refused left nothing.
func (b *bench) empty(pool string) {
	b.t.Helper()
	ctx := context.Background()
	images, err := b.Images(ctx, api.Page{})
	if err != nil || len(images.Items) != 0 {
		b.t.Errorf("images %+v, %v, want none", images.Items, err)
	}
	volumes, err := b.Volumes(ctx, pool, api.Page{})
	if err != nil || len(volumes.Items) != 0 {
		b.t.Errorf("volumes %+v, %v, want none", volumes.Items, err)
	}
	report, err := b.Doctor(ctx, api.Doctor{})
	if err != nil || len(report.Problems) != 0 {
		b.t.Errorf("doctor: %+v, %v, want no problem", report.Problems, err)
	}
}

// remote is a bench with a pool that fetches from a server.
func remote(t *testing.T, data []byte) (*bench, *origin) {
	t.Helper()
	o := newOrigin(t, data)
	b := &bench{t: t, state: t.TempDir(), configure: o.reach}
	b.start()
	t.Cleanup(func() { b.stop() })
	b.pool("main")
	return b, o
}

func TestImagesAreFetched(t *testing.T) {
	data := noise(6<<20 + 512)
	b, o := remote(t, data)
	sum512 := sha512.Sum512(data)
	o.cut.Store(2)
	b.must(b.fetched("resumed", api.ImageDetails{URL: o.URL + "/disk.raw", SHA512: hex.EncodeToString(sum512[:])}))
	if o.ranges.Load() != 2 {
		t.Errorf("the download was continued %d times, want 2", o.ranges.Load())
	}
	sum := sha256.Sum256(data)
	i, err := b.Image(context.Background(), "resumed")
	if err != nil || i.SourceSHA256 != hex.EncodeToString(sum[:]) || i.VirtualSize != int64(len(data)) {
		t.Errorf("got %+v, %v, want %d bytes with the SHA-256 %x", i, err, len(data), sum)
	}
	b.must(b.fetched("summed", api.ImageDetails{URL: o.URL + "/disk.raw?secret=1", File: "disk.raw", ChecksumsURL: o.URL + "/SHA256SUMS"}))
	ops, err := b.Operations(context.Background(), "", api.Page{})
	if text := fmt.Sprint(ops); err != nil || strings.Contains(text, "secret") {
		t.Errorf("operations tell the URL's query: %s, %v", text, err)
	}
	v, err := b.ImageInspect(context.Background(), api.ImageInspect{Format: "raw", ImageDetails: api.ImageDetails{URL: o.URL + "/disk.raw"}}, ingest.Source{})
	if err != nil || v.Verdict != "accept" || v.SourceSHA256 != hex.EncodeToString(sum[:]) {
		t.Errorf("inspect: got %+v, %v, want accept", v, err)
	}
}

func TestWhatIsNotFetchedLeavesNothing(t *testing.T) {
	data := noise(3 << 20)
	b, o := remote(t, data)
	at := o.URL + "/disk.raw"
	wrong := hex.EncodeToString(make([]byte, 64))
	for _, row := range []struct {
		name  string
		d     api.ImageDetails
		cuts  int64
		kind  errs.Kind
		class string
		text  string
	}{
		{"404", api.ImageDetails{URL: o.URL + "/nothing"}, 0, errs.NotFound, "", "404"},
		{"sha512", api.ImageDetails{URL: at, SHA512: wrong}, 0, errs.Unsafe, "CHECKSUM", "SHA-512"},
		{"breaks off", api.ImageDetails{URL: at}, 1000, errs.Unsafe, "TRUNCATED", "continued"},
		{"breaks off without a version", api.ImageDetails{URL: o.URL + "/unversioned.raw"}, 1, errs.Unsafe, "TRUNCATED", "names no version"},
		{"more than announced", api.ImageDetails{URL: o.URL + "/more.raw"}, 0, errs.Unsafe, "CORRUPT", "more than the 3145628 bytes"},
		{"changed", api.ImageDetails{URL: o.URL + "/changing.raw"}, 1, errs.Conflict, "", "has changed"},
		{"http", api.ImageDetails{URL: strings.Replace(at, "https", "http", 1)}, 0, errs.Unsafe, "EXTERNAL_REFERENCE", "http"},
		{"ftp", api.ImageDetails{URL: strings.Replace(at, "https", "ftp", 1)}, 0, errs.Invalid, "", "ftp"},
		{"cloud of no Glance", api.ImageDetails{URL: at, Cloud: "x"}, 0, errs.Invalid, "", "Glance"},
		{"no such cloud", api.ImageDetails{URL: "glance:///00000000-0000-0000-0000-000000000000", Cloud: "x"}, 0, errs.NotFound, "", `no cloud "x"`},
		{"no sums", api.ImageDetails{URL: at, File: "disk.raw", ChecksumsURL: o.URL + "/nothing"}, 0, errs.NotFound, "", "404"},
		{"not in the sums", api.ImageDetails{URL: at, File: "other.raw", ChecksumsURL: o.URL + "/SHA256SUMS"}, 0, errs.NotFound, "", "file name"},
		{"wrong sums", api.ImageDetails{URL: at, File: "disk.raw", Checksums: []byte(wrong[:64] + "  disk.raw\n")}, 0, errs.Unsafe, "CHECKSUM", "SHA-256"},
		{"description", api.ImageDetails{URL: at, Description: []byte("<x/>")}, 0, errs.Invalid, "", "ploop"},
		{"compression", api.ImageDetails{URL: at, Compression: "lzma"}, 0, errs.Invalid, "", "lzma"},
		{"quota", api.ImageDetails{URL: at, MaxVirtualSize: 1 << 20}, 0, errs.Unsafe, "QUOTA", ""},
		{"signature without key", api.ImageDetails{URL: at, Signature: []byte("x")}, 0, errs.Invalid, "", "key"},
	} {
		t.Run(row.name, func(t *testing.T) {
			b.t = t
			o.cut.Store(row.cuts)
			out, err := b.fetched("refused", row.d)
			e := b.refused(out, err)
			if e.Kind != row.kind || e.Class != row.class || !strings.Contains(e.Message, row.text) {
				t.Errorf("got %s %s %q, want %s %s with %q", e.Kind, e.Class, e.Message, row.kind, row.class, row.text)
			}
			b.empty("main")
			o.cut.Store(row.cuts)
			v, err := b.ImageInspect(context.Background(), api.ImageInspect{Format: "raw", ImageDetails: row.d}, ingest.Source{})
			if row.kind != errs.Unsafe {
				if e := api.ErrorOf(err); e.Kind != row.kind || !strings.Contains(e.Message, row.text) {
					t.Errorf("inspect: got %v, %+v, want %s with %q", err, v, row.kind, row.text)
				}
				return
			}
			if err != nil || v.Verdict != "reject" || v.Error != row.class || v.Hint != e.Hint || !strings.Contains(v.Detail, row.text) {
				t.Errorf("inspect: got %+v, %v, want reject as %q with %q and the hint %q", v, err, row.class, row.text, e.Hint)
			}
		})
	}
	b.t = t
}

// minisign signs data as the tool of that name does.
func minisign(t *testing.T, data []byte) (key, sig []byte) {
	t.Helper()
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	const id, comment = "12345678", "timestamp:1 file:disk.raw"
	sum := blake2b.Sum512(data)
	s := ed25519.Sign(private, sum[:])
	global := ed25519.Sign(private, append(bytes.Clone(s), comment...))
	encode := func(algo string, b []byte) string {
		return base64.StdEncoding.EncodeToString(append([]byte(algo+id), b...))
	}
	key = []byte("untrusted comment: key\n" + encode("Ed", public) + "\n")
	return key, fmt.Appendf(nil, "untrusted comment: x\n%s\ntrusted comment: %s\n%s\n", encode("ED", s), comment, base64.StdEncoding.EncodeToString(global))
}

func TestSignatures(t *testing.T) {
	data := noise(5 << 20)
	b, o := remote(t, data)
	path := filepath.Join(t.TempDir(), "disk.raw")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	sums := fmt.Appendf(nil, "%x  disk.raw\n", sha256.Sum256(data))
	key, sig := minisign(t, data)
	_, other := minisign(t, data[1:])
	sum := fmt.Sprintf("sha256:%x", sha256.Sum256(data))
	sumsKey, sumsSig := minisign(t, sums)
	for _, row := range []struct {
		name  string
		d     api.ImageDetails
		class string
		proof string // what the image says afterwards
	}{
		{"image", api.ImageDetails{SigningKey: key, Signature: sig}, "", "[] over the image"},
		{"sums", api.ImageDetails{SigningKey: sumsKey, Signature: sumsSig, Checksums: sums, File: "disk.raw"}, "", "[" + sum + "] over the checksums"},
		{"other bytes", api.ImageDetails{SigningKey: sumsKey, Signature: sumsSig}, "CHECKSUM", ""},
		{"other key", api.ImageDetails{SigningKey: key, Signature: other}, "CHECKSUM", ""},
		{"sums of somebody else", api.ImageDetails{SigningKey: key, Signature: sig, Checksums: sums, File: "disk.raw"}, "CHECKSUM", ""},
	} {
		for _, from := range []string{"descriptor", "stream", "URL"} {
			t.Run(row.name+"/"+from, func(t *testing.T) {
				b.t = t
				d, src := row.d, ingest.Source{File: f, Name: path}
				switch from {
				case "stream":
					src = ingest.Source{Stream: bytes.NewReader(data), Size: -1, Name: "-"}
				case "URL":
					d.URL, src = o.URL+"/disk.raw", ingest.Source{}
				}
				out, err := b.ImageImport(context.Background(), api.Options{}, api.ImageImport{Name: "signed", Format: "raw", ImageDetails: d}, src)
				if row.class == "" {
					op := b.must(out, err)
					if !strings.Contains(string(op.Result), `"3837363534333231"`) {
						t.Errorf("the result %s does not name the key", op.Result)
					}
					i := mustImage(t, b, "signed")
					if i.Signed == nil || i.Signed.Scheme != "minisign" || i.Signed.KeyID != "3837363534333231" || i.Signed.Comment != "timestamp:1 file:disk.raw" {
						t.Fatalf("the image says %+v of its signature", i.Signed)
					}
					if got := fmt.Sprint(i.Verified, " over the ", i.Signed.Over); got != row.proof {
						t.Errorf("the image says %s, want %s", got, row.proof)
					}
					b.must(b.ImageDelete(context.Background(), api.Options{}, "signed"))
					return
				}
				e := b.refused(out, err)
				if e.Kind != errs.Unsafe || e.Class != row.class {
					t.Errorf("got %s %s %q, want %s", e.Kind, e.Class, e.Message, row.class)
				}
				b.empty("main")
			})
		}
	}
	b.t = t
}

func TestAPolicyRestrictsFormats(t *testing.T) {
	b := &bench{t: t, state: t.TempDir(), configure: func(c *engine.Config) { c.Formats = []diskfmt.Format{diskfmt.Qcow2} }}
	b.start()
	defer func() { b.stop() }()
	b.pool("main")
	_, err := b.ImageImport(context.Background(), api.Options{}, api.ImageImport{Name: "a", Format: "raw"}, ingest.Source{Stream: strings.NewReader("x"), Size: 1})
	if e := api.ErrorOf(err); e.Class != "UNSUPPORTED_FORMAT" || !strings.Contains(e.Message, "policy") {
		t.Errorf("got %+v, want UNSUPPORTED_FORMAT that names the policy", e)
	}
	b.empty("main")
}

// TestAPoolRestrictsFormats sets which formats a pool takes, when it is made and
// later, and loses the database. Content that another pool took may be copied
// into it: by then it is tarn's own.
func TestAPoolRestrictsFormats(t *testing.T) {
	ctx := context.Background()
	b := newBench(t)
	dir := filepath.Join(t.TempDir(), "strict")
	b.fails(errs.Invalid, api.Outcome{}, second(b.PoolCreate(ctx, api.Options{}, api.PoolCreate{Name: "strict", Driver: "dir", Path: dir, ImageFormats: []string{"qcow2", "qed"}})))
	b.must(b.PoolCreate(ctx, api.Options{}, api.PoolCreate{Name: "strict", Driver: "dir", Path: dir, ImageFormats: []string{"qcow2", "iso"}}))
	b.pool("open")
	refused := func(when string) {
		t.Helper()
		if p := mustPool(t, b, "strict"); fmt.Sprint(p.ImageFormats) != "[qcow2 iso]" {
			t.Errorf("%s the pool accepts %v", when, p.ImageFormats)
		}
		out, err := b.ImageImport(ctx, api.Options{}, api.ImageImport{Name: "a", Format: "raw", Pool: "strict"}, ingest.Source{Stream: strings.NewReader("x"), Size: 1})
		e := b.refused(out, err)
		if e.Class != "UNSUPPORTED_FORMAT" || e.Message != "pool strict does not accept images in raw, only in qcow2, iso" || !strings.Contains(e.Hint, "pool set strict --image-formats qcow2,iso,raw") {
			t.Errorf("%s: got %+v, want UNSUPPORTED_FORMAT that names pool and formats", when, e)
		}
	}
	refused("when it was made")
	b.empty("strict")
	data := b.image("debian", 1<<20, "open")
	b.must(b.CacheAdd(ctx, api.Options{}, api.CacheAdd{Image: "debian", Pool: "strict"}))
	b.instance("web1", api.DiskSpec{Role: "root", Image: "debian", Pool: "strict"})
	if got := b.read("web1/root"); !bytes.Equal(got, data) {
		t.Errorf("the disk reads %d bytes that differ from the image", len(got))
	}
	b.loseDatabase()
	b.must(b.PoolImport(ctx, api.Options{}, api.PoolImport{Driver: "dir", Path: dir}))
	refused("after a lost database")
	for _, bad := range [][]string{{"auto"}, {"raw", ""}} {
		b.fails(errs.Invalid, api.Outcome{}, second(b.PoolSet(ctx, api.Options{}, "strict", api.PoolSet{ImageFormats: &bad})))
	}
	refused("after settings that cannot be")
	overcommit := 2.0
	b.must(b.PoolSet(ctx, api.Options{}, "strict", api.PoolSet{Overcommit: &overcommit}))
	refused("after another setting")
	b.must(b.PoolSet(ctx, api.Options{}, "strict", api.PoolSet{ImageFormats: &[]string{}}))
	b.image("raw", 1<<20, "strict")
	if p := mustPool(t, b, "strict"); len(p.ImageFormats) != 0 {
		t.Errorf("the pool accepts %v, want any format", p.ImageFormats)
	}
	b.silent("a pool that restricts formats")
}

// TestWhoSignedComesBack loses the database behind imports whose bytes were
// verified.
func TestWhoSignedComesBack(t *testing.T) {
	ctx := context.Background()
	data := noise(1 << 20)
	b, o := remote(t, data)
	dir := mustPool(t, b, "main").Path
	key, sig := minisign(t, data)
	sum512 := sha512.Sum512(data)
	b.must(b.fetched("signed", api.ImageDetails{URL: o.URL + "/disk.raw", SigningKey: key, Signature: sig, SHA512: hex.EncodeToString(sum512[:])}))
	b.must(b.fetched("twin", api.ImageDetails{URL: o.URL + "/disk.raw"}))
	before := [2]api.Image{mustImage(t, b, "signed"), mustImage(t, b, "twin")}
	if got := fmt.Sprint(before[0].Verified); got != fmt.Sprintf("[sha512:%x]", sum512) || before[0].Signed == nil {
		t.Errorf("the image says that %s was verified, signed %+v", got, before[0].Signed)
	}
	if twin := before[1]; twin.Signed != nil || twin.Verified != nil {
		t.Errorf("the twin, of which nothing was claimed, says %+v and %v", twin.Signed, twin.Verified)
	}
	b.loseDatabase()
	b.must(b.PoolImport(ctx, api.Options{}, api.PoolImport{Driver: "dir", Path: dir}))
	after := [2]api.Image{mustImage(t, b, "signed"), mustImage(t, b, "twin")}
	if x, y := jsonOf(t, before), jsonOf(t, after); x != y {
		t.Errorf("after a lost database:\n got %s\nwant %s", y, x)
	}
}

// fetchImage imports an image from a server.
func (w *world) fetchImage(ctx context.Context, e *engine.Engine) error {
	out, err := e.ImageImport(ctx, api.Options{}, api.ImageImport{Name: "debian", Format: "raw", ImageDetails: api.ImageDetails{URL: w.origin.URL + "/disk.raw"}}, ingest.Source{})
	return errors.Join(finished(ctx, e, out, err), e.Settle(ctx))
}

// checkFetched asks that an import from a server that was begun has been done.
func (w *world) checkFetched(t *testing.T) {
	t.Helper()
	err := w.with(func(ctx context.Context, e *engine.Engine) error {
		ops, err := e.Operations(ctx, "", api.Page{Limit: -1})
		for _, op := range ops.Items {
			if op.Kind == "image.import" && op.State != "done" {
				t.Errorf("the import is %s: %+v", op.State, op.Error)
			}
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

// TestAnImportGoesOnAfterARestart stops the daemon in the middle of a download.
func TestAnImportGoesOnAfterARestart(t *testing.T) {
	data := noise(9 << 20)
	b, o := remote(t, data)
	o.hold = make(chan struct{})
	out, err := b.fetched("long", api.ImageDetails{URL: o.URL + "/disk.raw"})
	if err != nil {
		t.Fatal(err)
	}
	id := out.Operation.ID
	for op := *out.Operation; op.Progress.Done == 0; {
		if op, err = b.OperationWait(context.Background(), id, 10*time.Millisecond); err != nil || op.Final() {
			t.Fatalf("the operation is %+v, %v", op, err)
		}
	}
	b.stop()
	close(o.hold)
	b.start()
	op, err := b.OperationWait(context.Background(), id, time.Minute)
	if err != nil || op.State != "done" {
		t.Fatalf("after the restart the operation is %s: %+v, %v", op.State, op.Error, err)
	}
	if n := o.requests.Load(); n != 2 {
		t.Errorf("%d requests, want one before the restart and one behind it", n)
	}
	b.must(b.InstanceCreate(context.Background(), api.Options{}, api.InstanceCreate{Name: "web1", Disks: []api.DiskSpec{{Role: "root", Image: "long", Size: 9 << 20}}}))
	if got := b.read("web1/root"); !bytes.Equal(got, data) {
		t.Errorf("the disk reads %d bytes that differ from the image", len(got))
	}
}
