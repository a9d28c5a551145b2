// Package glance tests the fetching of images from real Glance and Keystone,
// started from Debian's packages on the loopback interface.
package glance

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"crypto/sha512"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/fetch"
)

const (
	password      = "s3cret-of-importer"
	adminPassword = "s3cret-of-admin"
)

var loopback = []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")}

// config reaches what runs here, and does not wait long.
var config = fetch.Config{Allow: loopback, PlainHTTP: loopback, Backoff: 10 * time.Millisecond}

// service is a running Glance, perhaps with Keystone.
type service struct {
	glance, keystone string
	stop             func()
}

// serve runs test/glance/serve until the test ends, and checks that nothing is
// left then. A script whose standard input ends, because this process did,
// ends by itself.
func serve(t *testing.T, args ...string) service {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "glance")
	cmd := exec.Command("../../glance/serve", append([]string{dir}, args...)...)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if len(args) > 0 {
		fmt.Fprintln(in, adminPassword)
	}
	start := time.Now()
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		if err := cmd.Wait(); cmd.ProcessState.ExitCode() == 3 && os.Getenv("CI") == "" {
			t.Skip("Glance is not installed: run scripts/install-deps glance")
		} else {
			t.Fatalf("test/glance/serve: %v", err)
		}
	}
	t.Logf("started in %v", time.Since(start).Round(100*time.Millisecond))
	var s service
	fmt.Sscan(line, &s.glance, &s.keystone)
	stopped := false
	s.stop = func() {
		if stopped {
			return
		}
		stopped = true
		in.Close()
		if err := cmd.Wait(); err != nil {
			t.Errorf("test/glance/serve: %v", err)
		}
		if _, err := os.Lstat(dir); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("test/glance/serve left %s behind: %v", dir, err)
		}
	}
	t.Cleanup(s.stop)
	return s
}

// needRoot skips where Debian's configuration of Glance cannot be read.
func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		if os.Getenv("CI") != "" || os.Getenv("TARN_TEST_ROOT") == "1" {
			t.Fatal("this test must run as root")
		}
		t.Skip("needs root, for Glance's own configuration")
	}
}

// call calls an API that the test sets things up with.
func call(t *testing.T, method, url, token, kind string, body any, want int) (http.Header, map[string]any) {
	t.Helper()
	b, ok := body.([]byte)
	if !ok && body != nil {
		var err error
		if b, err = json.Marshal(body); err != nil {
			t.Fatal(err)
		}
	}
	req, err := http.NewRequest(method, url, bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", kind)
	if token != "" {
		req.Header.Set("X-Auth-Token", token)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	answer, _ := io.ReadAll(resp.Body)
	if resp.StatusCode != want {
		t.Fatalf("%s %s: %s, want %d: %s", method, url, resp.Status, want, answer)
	}
	out := map[string]any{}
	json.Unmarshal(answer, &out) // some answers have no body
	return resp.Header, out
}

const asJSON = "application/json"

// upload makes an image, active when content is not nil.
func upload(t *testing.T, glance, token string, record map[string]any, content []byte) string {
	t.Helper()
	_, i := call(t, http.MethodPost, glance+"/v2/images", token, asJSON, record, http.StatusCreated)
	id := i["id"].(string)
	if content != nil {
		call(t, http.MethodPut, glance+"/v2/images/"+id+"/file", token, "application/octet-stream", content, http.StatusNoContent)
	}
	return id
}

func random(n int) []byte {
	b := make([]byte, n)
	rand.Read(b)
	return b
}

func disk(format string) map[string]any {
	return map[string]any{"name": "test", "disk_format": format, "container_format": "bare", "min_disk": 3}
}

// read fetches an image whole and compares it with content.
func read(t *testing.T, cfg fetch.Config, cloud fetch.Cloud, source string, content []byte) *fetch.Image {
	t.Helper()
	i, err := fetch.Glance(t.Context(), cfg, cloud, source)
	if err != nil {
		t.Fatalf("%s: %v", source, err)
	}
	s, err := i.Open(t.Context())
	if err != nil {
		t.Fatalf("%s: %v", source, err)
	}
	defer s.Close()
	got, err := io.ReadAll(s)
	if err != nil || !bytes.Equal(got, content) {
		t.Fatalf("%s: %d bytes (as uploaded: %v), %v; want %d bytes", source, len(got), bytes.Equal(got, content), err, len(content))
	}
	if sum := sha512.Sum512(got); i.HashAlgo != "sha512" || i.Hash != hex.EncodeToString(sum[:]) || i.Size != int64(len(content)) || s.Size() != i.Size {
		t.Errorf("%s: the record says %+v of %d bytes with the SHA-512 %x", source, i, len(content), sum)
	}
	return i
}

// refused checks an error's kind and text, and that no secret is in it.
func refused(t *testing.T, what string, err error, kind errs.Kind, text string) {
	t.Helper()
	if errs.KindOf(err) != kind || err == nil || !strings.Contains(err.Error(), text) || strings.Contains(err.Error(), "s3cret") {
		t.Errorf("%s: got %s %v, want %s with %q", what, errs.KindOf(err), err, kind, text)
	}
}

func plain(endpoint, id string) string {
	return strings.Replace(endpoint, "http://", "glance+http://", 1) + "/" + id
}

// cutting forwards connections to another address and cuts those that carried
// limit bytes back, as long as cuts remain.
type cutting struct {
	url   string
	limit int64
	cuts  atomic.Int64
}

func cut(t *testing.T, to string, limit int64) *cutting {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	c := &cutting{url: "http://" + l.Addr().String(), limit: limit}
	go func() {
		for {
			near, err := l.Accept()
			if err != nil {
				return
			}
			go c.forward(near, strings.TrimPrefix(to, "http://"))
		}
	}()
	return c
}

func (c *cutting) forward(near net.Conn, to string) {
	defer near.Close()
	far, err := net.Dial("tcp", to)
	if err != nil {
		return
	}
	defer far.Close()
	go io.Copy(far, near)
	n, _ := io.CopyN(near, far, c.limit)
	if n == c.limit {
		if c.cuts.Add(-1) >= 0 {
			near.(*net.TCPConn).SetLinger(0)
			return
		}
		io.Copy(near, far)
	}
}

func TestGlance(t *testing.T) {
	needRoot(t)
	t.Parallel()
	s := serve(t)
	content := random(9 << 20)
	id := upload(t, s.glance, "", disk("qcow2"), content)

	i := read(t, config, fetch.Cloud{}, plain(s.glance, id), content)
	if i.Format != "qcow2" || i.MinDisk != 3<<30 {
		t.Errorf("the record is %+v, want qcow2 and a min_disk of 3 GiB", i)
	}

	t.Run("resumed", func(t *testing.T) {
		c := cut(t, s.glance, 2<<20)
		c.cuts.Store(3)
		read(t, config, fetch.Cloud{}, plain(c.url, id), content)
		if left := c.cuts.Load(); left >= 0 {
			t.Errorf("%d connections were not cut", left)
		}
	})
	t.Run("ends early", func(t *testing.T) {
		c := cut(t, s.glance, 100_000)
		c.cuts.Store(1000)
		i, err := fetch.Glance(t.Context(), config, fetch.Cloud{}, plain(c.url, id))
		if err != nil {
			t.Fatal(err)
		}
		b, err := i.Open(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		_, err = io.Copy(io.Discard, b)
		refused(t, "ends early", err, errs.Unavailable, "it was continued 5 times")
	})
	t.Run("with TLS", func(t *testing.T) {
		to, _ := url.Parse(s.glance)
		front := httptest.NewUnstartedServer(httputil.NewSingleHostReverseProxy(to))
		front.Config.ErrorLog = log.New(io.Discard, "", 0)
		front.StartTLS()
		defer front.Close()
		cfg := config
		cfg.Roots = x509.NewCertPool()
		cfg.Roots.AddCert(front.Certificate())
		read(t, cfg, fetch.Cloud{}, strings.Replace(front.URL, "https", "glance", 1)+"/"+id, content)
		cfg.Roots = nil
		_, err := fetch.Glance(t.Context(), cfg, fetch.Cloud{}, strings.Replace(front.URL, "https", "glance", 1)+"/"+id)
		refused(t, "unknown authority", err, errs.Unsafe, "certificate")
	})
	t.Run("formats", func(t *testing.T) {
		for _, format := range []string{"raw", "vmdk", "vhd", "vhdx", "vdi", "iso", "ploop"} {
			small := random(1000)
			if i := read(t, config, fetch.Cloud{}, plain(s.glance, upload(t, s.glance, "", disk(format), small)), small); i.Format != format {
				t.Errorf("%s: the record is %+v", format, i)
			}
		}
		ova := disk("vmdk")
		ova["container_format"] = "ova"
		if i := read(t, config, fetch.Cloud{}, plain(s.glance, upload(t, s.glance, "", ova, content)), content); i.Format != "ova" {
			t.Errorf("ova: the record is %+v", i)
		}
	})

	queued := upload(t, s.glance, "", disk("raw"), nil)
	deactivated := upload(t, s.glance, "", disk("raw"), random(10))
	call(t, http.MethodPost, s.glance+"/v2/images/"+deactivated+"/actions/deactivate", "", asJSON, nil, http.StatusNoContent)
	ami := map[string]any{"name": "test", "disk_format": "ami", "container_format": "ami"}
	for _, c := range []struct {
		what, source string
		cfg          fetch.Config
		kind         errs.Kind
		text         string
	}{
		{"no such image", plain(s.glance, "00000000-0000-0000-0000-000000000000"), config, errs.NotFound, "404"},
		{"queued", plain(s.glance, queued), config, errs.Conflict, `"queued", not active`},
		{"deactivated", plain(s.glance, deactivated), config, errs.Conflict, "not active"},
		{"ami", plain(s.glance, upload(t, s.glance, "", ami, random(10))), config, errs.Unsupported, `"ami"`},
		{"loopback not allowed", plain(s.glance, id), fetch.Config{PlainHTTP: loopback}, errs.Unsafe, "loopback"},
		{"http not allowed", plain(s.glance, id), fetch.Config{Allow: loopback}, errs.Unsafe, "without TLS"},
		{"TLS where there is none", strings.Replace(s.glance, "http", "glance", 1) + "/" + id, config, errs.Unavailable, "TLS"},
	} {
		_, err := fetch.Glance(t.Context(), c.cfg, fetch.Cloud{}, c.source)
		refused(t, c.what, err, c.kind, c.text)
	}

	t.Run("shipped", func(t *testing.T) { importFromGlance(t, s) })

	i, err := fetch.Glance(t.Context(), config, fetch.Cloud{}, plain(s.glance, id))
	if err != nil {
		t.Fatal(err)
	}
	s.stop()
	_, err = i.Open(t.Context())
	refused(t, "down before the download", err, errs.Unavailable, "connection refused")
	_, err = fetch.Glance(t.Context(), config, fetch.Cloud{}, plain(s.glance, id))
	refused(t, "down", err, errs.Unavailable, "connection refused")
}

// identity is who a token is for.
type identity struct {
	token, user, project string
	roles                []string
}

// login gets a token by the test's own hand.
func login(t *testing.T, keystone, user, password string) identity {
	t.Helper()
	domain := map[string]any{"id": "default"}
	header, body := call(t, http.MethodPost, keystone+"/v3/auth/tokens", "", asJSON, map[string]any{"auth": map[string]any{
		"identity": map[string]any{"methods": []string{"password"},
			"password": map[string]any{"user": map[string]any{"name": user, "domain": domain, "password": password}}},
		"scope": map[string]any{"project": map[string]any{"name": "admin", "domain": domain}},
	}}, http.StatusCreated)
	token := body["token"].(map[string]any)
	id := func(v any) string { return v.(map[string]any)["id"].(string) }
	out := identity{token: header.Get("X-Subject-Token"), user: id(token["user"]), project: id(token["project"])}
	for _, r := range token["roles"].([]any) {
		if r.(map[string]any)["name"] == "member" {
			out.roles = append(out.roles, id(r))
		}
	}
	return out
}

func TestKeystone(t *testing.T) {
	needRoot(t)
	t.Parallel()
	s := serve(t, "keystone")
	admin := login(t, s.keystone, "admin", adminPassword)
	create := func(who identity, path, noun string, fields map[string]any) string {
		t.Helper()
		_, made := call(t, http.MethodPost, s.keystone+"/v3/"+path, who.token, asJSON, map[string]any{noun: fields}, http.StatusCreated)
		return made[noun].(map[string]any)["id"].(string)
	}
	service := create(admin, "services", "service", map[string]any{"type": "image", "name": "glance"})
	for _, face := range []string{"public", "internal"} {
		create(admin, "endpoints", "endpoint", map[string]any{"interface": face, "region_id": "here", "service_id": service, "url": s.glance})
	}
	user := create(admin, "users", "user", map[string]any{"name": "importer", "domain_id": "default", "password": password})
	call(t, http.MethodPut, s.keystone+"/v3/projects/"+admin.project+"/users/"+user+"/roles/"+admin.roles[0], admin.token, asJSON, nil, http.StatusNoContent)
	importer := login(t, s.keystone, "importer", password)
	credential := create(importer, "users/"+user+"/application_credentials", "application_credential", map[string]any{"name": "tarn", "secret": password + "2"})

	content := bootable(5 << 20)
	id := upload(t, s.glance, importer.token, disk("raw"), content)

	text := fmt.Sprintf(`
clouds:
  password:
    auth: {auth_url: %[1]s/v3, username: importer, password: %[2]s, project_name: admin, user_domain_name: Default, project_domain_name: Default}
    region_name: here
  internal:
    auth: {auth_url: %[1]s, user_id: %[3]s, password: %[2]s, project_name: admin, project_domain_id: default}
    interface: internal
  credential:
    auth_type: v3applicationcredential
    auth: {auth_url: %[1]s/v3/, application_credential_id: "%[4]s", application_credential_secret: %[2]s2}
  credential-name:
    auth_type: v3applicationcredential
    auth: {auth_url: %[1]s, application_credential_name: tarn, username: importer, user_domain_id: default, application_credential_secret: %[2]s2}
  token:
    auth_type: token
    auth: {auth_url: %[1]s, token: "%[5]s"}
  token-endpoint:
    auth: {token: "%[5]s"}
    image_endpoint_override: %[6]s/v2
  wrong:
    auth: {auth_url: %[1]s, username: importer, password: %[2]s-not, project_name: admin}
  wrong-credential:
    auth: {auth_url: %[1]s, application_credential_id: "%[4]s", application_credential_secret: %[2]s-not}
  wrong-token:
    auth: {token: nonsense}
    image_endpoint_override: %[6]s
  elsewhere:
    auth: {auth_url: %[1]s, username: importer, password: %[2]s, project_name: admin}
    region_name: there
`, s.keystone, password, user, credential, importer.token, s.glance)
	clouds, err := fetch.ParseClouds([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"password", "internal", "credential", "credential-name", "token", "token-endpoint"} {
		t.Run(name, func(t *testing.T) { read(t, config, clouds[name], "glance:///"+id, content) })
	}
	read(t, config, clouds["password"], plain(s.glance, id), content)
	other := strings.Replace(plain(s.glance, id), "127.0.0.1", "localhost", 1)
	for _, c := range []struct {
		cloud, source string
		kind          errs.Kind
		text          string
	}{
		{"wrong", "glance:///" + id, errs.Invalid, "other credentials"},
		{"wrong-credential", "glance:///" + id, errs.Invalid, "other credentials"},
		{"wrong-token", "glance:///" + id, errs.Invalid, "other credentials"},
		{"none", plain(s.glance, id), errs.Invalid, "other credentials"},
		{"elsewhere", "glance:///" + id, errs.Invalid, "no image service"},
		{"password", other, errs.Unsafe, "its token goes nowhere else"},
		{"password", "glance:///00000000-0000-0000-0000-000000000000", errs.NotFound, "404"},
	} {
		_, err := fetch.Glance(t.Context(), config, clouds[c.cloud], c.source)
		refused(t, c.cloud+" "+c.source, err, c.kind, c.text)
	}

	t.Run("shipped", func(t *testing.T) { importWithKeystone(t, text, id, content) })

	// A token that is no longer good when the connection breaks is replaced.
	c := cut(t, s.glance, 2<<20)
	c.cuts.Store(1)
	cloud := clouds["password"]
	cloud.ImageEndpoint = c.url
	patient := config // Keystone revokes by the second: a token of the same one would be revoked, too
	patient.Backoff = time.Second
	i, err := fetch.Glance(t.Context(), patient, cloud, "glance:///"+id)
	if err != nil {
		t.Fatal(err)
	}
	b, err := i.Open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	got := make([]byte, 1000, len(content))
	if _, err := io.ReadFull(b, got); err != nil {
		t.Fatal(err)
	}
	for _, enabled := range []bool{false, true} { // which revokes what the user has
		call(t, http.MethodPatch, s.keystone+"/v3/users/"+user, admin.token, asJSON, map[string]any{"user": map[string]any{"enabled": enabled}}, http.StatusOK)
	}
	_, err = fetch.Glance(t.Context(), config, clouds["token-endpoint"], "glance:///"+id)
	refused(t, "revoked token", err, errs.Invalid, "other credentials")
	rest, err := io.ReadAll(b)
	if got = append(got, rest...); err != nil || !bytes.Equal(got, content) || c.cuts.Load() >= 0 {
		t.Errorf("%d bytes (as uploaded: %v), %v, %d cuts left", len(got), bytes.Equal(got, content), err, c.cuts.Load()+1)
	}
}
