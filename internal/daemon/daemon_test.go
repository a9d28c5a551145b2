package daemon

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io"
	"log/slog"
	"math/big"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/tarn-storage/tarn/api"
	"github.com/tarn-storage/tarn/client"
	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/config"
	"github.com/tarn-storage/tarn/internal/ingest"
)

// TestMain makes the test binary the daemon's worker, too.
func TestMain(m *testing.M) {
	if len(os.Args) == 2 && os.Args[1] == "worker" {
		ingest.WorkerMain()
	}
	signal.Ignore(syscall.SIGPIPE)
	os.Exit(m.Run())
}

// settings are a configuration in a directory of its own.
func settings(t *testing.T) config.Config {
	t.Helper()
	dir := t.TempDir()
	c, err := config.Config{StateDir: filepath.Join(dir, "state"), Socket: filepath.Join(dir, "s")}.WithDefaults(config.Places{})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// start starts a daemon that ends with the test.
func start(t *testing.T, c config.Config, log *slog.Logger) *Daemon {
	t.Helper()
	d, err := Start(t.Context(), c, log)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Stop(context.Background()); err != nil {
			t.Errorf("Stop: %v", err)
		}
	})
	return d
}

var quiet = slog.New(slog.DiscardHandler)

func TestStartServesAndStopRemovesTheSocket(t *testing.T) {
	c := settings(t)
	d, err := Start(t.Context(), c, quiet)
	if err != nil {
		t.Fatal(err)
	}
	fi, err := os.Stat(c.Socket)
	if err != nil || fi.Mode().Perm()&0o007 != 0 {
		t.Errorf("the socket: %v, %v, want no right for others", fi, err)
	}
	cl := client.New(client.Search{Socket: c.Socket})
	defer cl.Close()
	if v, err := cl.Version(t.Context()); err != nil || v.API != "v1" {
		t.Errorf("version: %+v, %v", v, err)
	}
	if err := d.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(c.Socket); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("after Stop the socket: %v, want it gone", err)
	}
	start(t, c, quiet) // the state directory is free again
}

func TestSecondDaemon(t *testing.T) {
	c := settings(t)
	start(t, c, quiet)
	sameState := c
	sameState.Socket += "2"
	if _, err := Start(t.Context(), sameState, quiet); !errors.Is(err, errs.Busy) || !strings.Contains(err.Error(), "another tarnd") {
		t.Errorf("the same state directory: got %v, want errs.Busy", err)
	}
	sameSocket := settings(t)
	sameSocket.Socket = c.Socket
	if _, err := Start(t.Context(), sameSocket, quiet); !errors.Is(err, errs.Busy) || !strings.Contains(err.Error(), "another daemon listens") {
		t.Errorf("the same socket: got %v, want errs.Busy", err)
	}
	cl := client.New(client.Search{Socket: c.Socket})
	defer cl.Close()
	if _, err := cl.Version(t.Context()); err != nil {
		t.Errorf("the first daemon does not answer any more: %v", err)
	}
	start(t, func() config.Config { sameSocket.Socket += "3"; return sameSocket }(), quiet) // a failed start left nothing locked
}

func TestStaleSocketIsReplacedAndAFileIsNot(t *testing.T) {
	c := settings(t)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: c.Socket, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	start(t, c, quiet)

	c = settings(t)
	if err := os.WriteFile(c.Socket, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Start(t.Context(), c, quiet); !errors.Is(err, errs.Conflict) {
		t.Errorf("a file in the socket's place: got %v, want errs.Conflict", err)
	}
	if b, err := os.ReadFile(c.Socket); string(b) != "precious" {
		t.Errorf("the file holds %q, %v", b, err)
	}
}

// TestLongestSocket serves at the longest path that a client can reach, and
// says so when it is one byte longer.
func TestLongestSocket(t *testing.T) {
	c := settings(t)
	c.Socket += strings.Repeat("s", maxPath+1-len(c.Socket))
	if _, err := Start(t.Context(), c, quiet); !errors.Is(err, errs.Invalid) || !strings.Contains(err.Error(), "107") {
		t.Errorf("a path of %d bytes: got %v, want errs.Invalid and the bound", len(c.Socket), err)
	}
	c.Socket = c.Socket[:maxPath]
	start(t, c, quiet)
	cl := client.New(client.Search{Socket: c.Socket})
	defer cl.Close()
	if _, err := cl.Version(t.Context()); err != nil {
		t.Errorf("a path of %d bytes: %v", len(c.Socket), err)
	}
}

// lockedBuffer is a log that may be read while it is written.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) lines() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Split(strings.TrimSpace(l.b.String()), "\n")
}

// TestAuditLog looks for one line per changing call that says who made it.
func TestAuditLog(t *testing.T) {
	c := settings(t)
	log := &lockedBuffer{}
	d, err := Start(t.Context(), c, slog.New(slog.NewJSONHandler(log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	cl := client.New(client.Search{Socket: c.Socket})
	_, err = cl.PoolCreate(t.Context(), api.Options{RequestID: "k1"}, api.PoolCreate{Name: "p", Driver: "dir", Path: filepath.Join(t.TempDir(), "p")})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := cl.Pools(t.Context(), api.Page{}); err != nil {
		t.Fatal(err)
	}
	cl.Close()
	if err := d.Stop(t.Context()); err != nil { // calls are logged before it returns
		t.Fatal(err)
	}
	type entry struct {
		Msg, Method, Path, Route, Operation string
		Status                              int
		Took                                int64
		RequestID                           string `json:"request_id"`
		Peer                                struct {
			PID      int
			UID, GID int
		}
	}
	var calls []entry
	for _, line := range log.lines() {
		var e entry
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		if e.Msg == "call" {
			calls = append(calls, e)
		}
	}
	if len(calls) != 1 {
		t.Fatalf("got %d audit lines, want 1: %v", len(calls), log.lines())
	}
	got := calls[0]
	if got.Method != "POST" || got.Path != "/v1/pools" || got.Route != "POST /v1/pools" || got.Status/100 != 2 || got.RequestID != "k1" || got.Operation == "" || got.Took <= 0 {
		t.Errorf("the audit line does not tell the call: %+v", got)
	}
	if got.Peer.PID != os.Getpid() || got.Peer.UID != os.Getuid() || got.Peer.GID != os.Getgid() {
		t.Errorf("the peer is %+v, want this process", got.Peer)
	}
}

// TestEventsResume reads events, goes away, and reads on behind the last.
func TestEventsResume(t *testing.T) {
	c := settings(t)
	start(t, c, quiet)
	cl := client.New(client.Search{Socket: c.Socket})
	defer cl.Close()
	create := func(name string) {
		t.Helper()
		if _, err := cl.PoolCreate(t.Context(), api.Options{}, api.PoolCreate{Name: name, Driver: "dir", Path: filepath.Join(t.TempDir(), "p")}); err != nil {
			t.Fatal(err)
		}
	}
	until := func(after int64, name string) int64 {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		for ev, err := range cl.Events(ctx, after, true) {
			if err != nil {
				t.Fatal(err)
			}
			if ev.ID != after+1 {
				t.Errorf("got event %d behind %d", ev.ID, after)
			}
			after = ev.ID
			if ev.Type == "operation.done" && ev.Subject.Name == name {
				return after
			}
		}
		t.Fatal("the stream ended")
		return 0
	}
	create("a")
	last := until(0, "a")
	create("b")
	until(last, "b")
}

func TestStopEndsFollowers(t *testing.T) {
	c := settings(t)
	d, err := Start(t.Context(), c, quiet)
	if err != nil {
		t.Fatal(err)
	}
	cl := client.New(client.Search{Socket: c.Socket})
	defer cl.Close()
	ended := make(chan error, 1)
	started := make(chan struct{})
	if _, err := cl.PoolCreate(t.Context(), api.Options{}, api.PoolCreate{Name: "a", Driver: "dir", Path: filepath.Join(t.TempDir(), "p")}); err != nil {
		t.Fatal(err)
	}
	go func() {
		var once sync.Once
		for _, err := range cl.Events(context.Background(), 0, true) {
			once.Do(func() { close(started) })
			if err != nil {
				ended <- err
			}
		}
		close(ended)
	}()
	<-started
	begin := time.Now()
	if err := d.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; !errors.Is(err, errs.Unavailable) {
		t.Errorf("the follower got %v, want errs.Unavailable", err)
	}
	if d := time.Since(begin); d > grace/2 {
		t.Errorf("Stop took %v with a follower", d)
	}
}

func TestNotify(t *testing.T) {
	path := filepath.Join(t.TempDir(), "n")
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	t.Setenv("NOTIFY_SOCKET", path)
	if err := notify("READY=1"); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 100)
	n, err := l.Read(b)
	if err != nil || string(b[:n]) != "READY=1" {
		t.Errorf("got %q, %v", b[:n], err)
	}
	t.Setenv("NOTIFY_SOCKET", "")
	if err := notify("READY=1"); err != nil {
		t.Errorf("without a service manager: %v", err)
	}
}

func TestInheritedIsForThisProcessOnly(t *testing.T) {
	t.Setenv("LISTEN_PID", "1")
	t.Setenv("LISTEN_FDS", "1")
	if s, err := inherited(); s != nil || err != nil {
		t.Errorf("another process's socket: got %v, %v, want none", s, err)
	}
	t.Setenv("LISTEN_PID", strconv.Itoa(os.Getpid()))
	t.Setenv("LISTEN_FDS", "2")
	if _, err := inherited(); !errors.Is(err, errs.Invalid) {
		t.Errorf("two sockets: got %v, want errs.Invalid", err)
	}
	if os.Getenv("LISTEN_FDS") != "" {
		t.Error("LISTEN_FDS is left for the processes that are started")
	}
}

func TestBallast(t *testing.T) {
	b := &ballast{dir: t.TempDir()}
	if err := b.Release(); err == nil {
		t.Error("a ballast that is not there was released")
	}
	if got := b.Missing(); got != ballastSize {
		t.Errorf("before Restore %d bytes are missing, want %d", got, ballastSize)
	}
	for range 2 {
		if err := b.Restore(); err != nil {
			t.Fatal(err)
		}
	}
	if got := b.Missing(); got != 0 {
		t.Errorf("after Restore %d bytes are missing, want none", got)
	}
	var st syscall.Stat_t
	if err := syscall.Stat(b.path(), &st); err != nil || st.Blocks*512 < ballastSize {
		t.Errorf("the ballast holds %d bytes, %v, want %d", st.Blocks*512, err, ballastSize)
	}
	if err := b.Release(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(b.path()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("after Release: %v", err)
	}
}

// authority makes certificates in files below a directory.
type authority struct {
	t    *testing.T
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T, name string) *authority {
	a := &authority{t: t, dir: t.TempDir()}
	a.cert, a.key = a.issue(name, nil, nil)
	return a
}

func (a *authority) path(name string) string { return filepath.Join(a.dir, name) }

// issue makes NAME.crt and NAME.key, signed by the parent or by itself.
func (a *authority) issue(name string, parent *x509.Certificate, signer *ecdsa.PrivateKey) (*x509.Certificate, *ecdsa.PrivateKey) {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	c := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		IsCA: parent == nil, BasicConstraintsValid: true,
	}
	if parent == nil {
		parent, signer = c, key
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, &key.PublicKey, signer)
	if err != nil {
		a.t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		a.t.Fatal(err)
	}
	for file, block := range map[string]*pem.Block{".crt": {Type: "CERTIFICATE", Bytes: der}, ".key": {Type: "PRIVATE KEY", Bytes: pkcs8}} {
		if err := os.WriteFile(a.path(name+file), pem.EncodeToMemory(block), 0o600); err != nil {
			a.t.Fatal(err)
		}
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		a.t.Fatal(err)
	}
	return cert, key
}

// TestMutualTLS imports and exports over TCP, where files are streams, and
// refuses clients without the right certificate.
func TestMutualTLS(t *testing.T) {
	ca, other := newAuthority(t, "ca"), newAuthority(t, "other")
	ca.issue("server", ca.cert, ca.key)
	ca.issue("client", ca.cert, ca.key)
	other.issue("client", other.cert, other.key)
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := free.Addr().String()
	free.Close()
	c := settings(t)
	c.Listen = &config.Listen{Address: address, Cert: ca.path("server.crt"), Key: ca.path("server.key"), ClientCA: ca.path("ca.crt")}
	start(t, c, quiet)

	stranger, err := client.NewRemote(client.Remote{URL: "https://" + address, Cert: other.path("client.crt"), Key: other.path("client.key"), CA: ca.path("ca.crt")})
	if err != nil {
		t.Fatal(err)
	}
	defer stranger.Close()
	if _, err := stranger.Version(t.Context()); !errors.Is(err, errs.Unavailable) {
		t.Errorf("a client that a stranger signed: got %v, want errs.Unavailable", err)
	}
	cl, err := client.NewRemote(client.Remote{URL: "https://" + address, Cert: ca.path("client.crt"), Key: ca.path("client.key"), CA: ca.path("ca.crt")})
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	roundTrip(t, cl)
}

// roundTrip imports an image and exports a disk made from it.
func roundTrip(t *testing.T, cl *client.Client) {
	t.Helper()
	finish := func(out api.Outcome, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		op, err := cl.OperationWait(t.Context(), out.Operation.ID, time.Minute)
		if err != nil || op.State != "done" {
			t.Fatalf("%s: %s, %v, %v", op.Kind, op.State, op.Error.Err(), err)
		}
	}
	content := bytes.Repeat([]byte("tarn over TCP. "), 100_000)
	content = append(content, make([]byte, 4096-len(content)%4096)...)
	path := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	finish(cl.PoolCreate(t.Context(), api.Options{}, api.PoolCreate{Name: "p", Driver: "dir", Path: filepath.Join(t.TempDir(), "p")}))
	finish(cl.ImageImport(t.Context(), api.Options{}, api.ImageImport{Name: "i", Format: "raw", Source: path}, client.Source{File: f, Size: -1}))
	finish(cl.InstanceCreate(t.Context(), api.Options{}, api.InstanceCreate{Name: "w", Disks: []api.DiskSpec{{Role: "root", Image: "i"}}}))
	out, err := os.OpenFile(path+".out", os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	if err := cl.DiskExport(t.Context(), "w/root", api.Export{Format: "raw"}, out, nil); err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(io.NewSectionReader(out, 0, 1<<30))
	if err != nil || !bytes.Equal(got, content) {
		t.Errorf("the export holds %d bytes, %v, want the image's %d", len(got), err, len(content))
	}
}

// TestRoundTripOverTheSocket does the same with descriptors.
func TestRoundTripOverTheSocket(t *testing.T) {
	c := settings(t)
	start(t, c, quiet)
	cl := client.New(client.Search{Socket: c.Socket})
	defer cl.Close()
	roundTrip(t, cl)
}
