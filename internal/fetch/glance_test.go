package fetch

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/google/go-cmp/cmp"

	"github.com/tarn-storage/tarn/errs"
)

const (
	imageA   = "b1e13cc7-7ae1-4154-9148-a2e351576e2c"
	glance   = "glance.example"
	keystone = "keystone.example"
	sha256A  = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
)

// cloudServer answers as Keystone and Glance do, in the parts that are asked.
// The system test in test/system/glance has the real ones.
type cloudServer struct {
	t       *testing.T
	record  map[string]any // of the image, over the usual
	body    []byte
	breaks  []int // bytes of each download; beyond the list all is sent
	expires []int // downloads that refuse their token
	logins  []string
	status  int // of Keystone
	glances string

	tokens    int
	downloads int
}

func (c *cloudServer) keystone(rw http.ResponseWriter, r *http.Request) {
	if c.status != 0 {
		rw.WriteHeader(c.status)
		io.WriteString(rw, "s3cret t0ken")
		return
	}
	b, _ := io.ReadAll(r.Body)
	c.logins = append(c.logins, r.Method+" "+r.URL.Path+" "+string(b))
	endpoint := func(face, region, url string) map[string]string {
		return map[string]string{"interface": face, "region": region, "region_id": region, "url": url}
	}
	catalog := []any{
		map[string]any{"type": "identity", "endpoints": []any{endpoint("public", "one", "https://keystone.example/v3")}},
		map[string]any{"type": "image", "endpoints": []any{
			endpoint("internal", "one", "https://internal.example"),
			endpoint("public", "two", "https://elsewhere.example/image/v2/"),
			endpoint("public", "one", c.glances),
		}},
	}
	c.tokens++
	rw.Header().Set("X-Subject-Token", fmt.Sprintf("t0ken%d", c.tokens))
	if r.Method == http.MethodGet {
		json.NewEncoder(rw).Encode(map[string]any{"catalog": catalog, "links": map[string]any{}})
		return
	}
	rw.WriteHeader(http.StatusCreated)
	json.NewEncoder(rw).Encode(map[string]any{"token": map[string]any{
		"expires_at": time.Now().Add(time.Hour).UTC().Format("2006-01-02T15:04:05.000000Z"), "catalog": catalog}})
}

func (c *cloudServer) glance(rw http.ResponseWriter, r *http.Request) {
	token := ""
	if c.tokens > 0 {
		token = fmt.Sprintf("t0ken%d", c.tokens)
	}
	path, ok := strings.CutPrefix(r.URL.Path, "/v2/images/"+imageA)
	switch {
	case r.Header.Get("X-Auth-Token") != token:
		rw.WriteHeader(http.StatusUnauthorized)
	case !ok:
		rw.WriteHeader(http.StatusNotFound)
	case path == "":
		record := map[string]any{"id": imageA, "status": "active", "disk_format": "qcow2", "container_format": "bare",
			"size": len(c.body), "virtual_size": nil, "min_disk": 2, "checksum": "d41d8cd98f00b204e9800998ecf8427e",
			"os_hash_algo": "sha256", "os_hash_value": sha256A, "locations": []string{"file:///etc/shadow"}}
		for k, v := range c.record {
			record[k] = v
		}
		json.NewEncoder(rw).Encode(record)
	case path == "/file":
		for _, n := range c.expires {
			if n == c.downloads {
				c.downloads++
				c.tokens++ // so that the last is no longer good
				rw.WriteHeader(http.StatusUnauthorized)
				return
			}
		}
		f := faulty{body: c.body, breaks: c.breaks, headers: make([]http.Header, c.downloads)}
		c.downloads++
		f.ServeHTTP(rw, r)
	}
}

// inCloud runs f with a cloud whose servers are glance and keystone.
func inCloud(t *testing.T, f func(t *testing.T, w *world, c *cloudServer)) {
	t.Helper()
	inWorld(t, func(t *testing.T, w *world) {
		c := &cloudServer{t: t, body: content(3 << 20), glances: "https://glance.example/v2"}
		w.serve(glance, addrA, c.glance)
		w.serve(keystone, "93.184.216.40", c.keystone)
		f(t, w, c)
	})
}

var password = Cloud{Region: "one", Auth: Auth{URL: "https://keystone.example/v3/", Username: "u", Password: "s3cret", Project: "p"}}

func TestGlance(t *testing.T) {
	inCloud(t, func(t *testing.T, w *world, c *cloudServer) {
		c.breaks = []int{1 << 20, 100}
		i, err := Glance(t.Context(), w.config(), Cloud{}, "glance://glance.example/"+imageA)
		if err != nil {
			t.Fatal(err)
		}
		want := Image{ID: imageA, Format: "qcow2", Size: 3 << 20, VirtualSize: -1, MinDisk: 2 << 30, HashAlgo: "sha256", Hash: sha256A}
		got := *i
		got.name, got.file, got.session = "", nil, nil
		if got != want {
			t.Errorf("got the image %+v, want %+v", got, want)
		}
		s, err := i.Open(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		b, err := io.ReadAll(s)
		if err != nil || !bytes.Equal(b, c.body) || s.Size() != 3<<20 || c.downloads != 3 {
			t.Errorf("%d bytes (as sent: %v) of %d in %d downloads, %v", len(b), bytes.Equal(b, c.body), s.Size(), c.downloads, err)
		}
	})
}

// TestGlanceRecords has records that are refused, and what the others become.
func TestGlanceRecords(t *testing.T) {
	type fields map[string]any
	for _, c := range []struct {
		what   string
		record fields
		format string // when accepted
		kind   errs.Kind
		text   string
	}{
		{"queued", fields{"status": "queued"}, "", errs.Conflict, `"queued", not active`},
		{"deactivated", fields{"status": "deactivated"}, "", errs.Conflict, "not active"},
		{"no status", fields{"status": nil}, "", errs.Conflict, "not active"},
		{"raw", fields{"disk_format": "raw"}, "raw", "", ""},
		{"gpt", fields{"disk_format": "gpt"}, "raw", "", ""},
		{"ova", fields{"container_format": "ova", "disk_format": "vmdk"}, "ova", "", ""},
		{"vhd", fields{"disk_format": "vhd"}, "vhd", "", ""},
		{"ami", fields{"disk_format": "ami", "container_format": "ami"}, "", errs.Unsupported, `container format is "ami"`},
		{"compressed", fields{"container_format": "compressed"}, "", errs.Unsupported, "compressed"},
		{"aki", fields{"disk_format": "aki"}, "", errs.Unsupported, `disk format is "aki"`},
		{"no format", fields{"disk_format": nil}, "", errs.Unsupported, "disk format"},
		{"no digest", fields{"os_hash_algo": nil, "os_hash_value": nil}, "qcow2", "", ""},
		{"md5", fields{"os_hash_algo": "md5"}, "", errs.Unsupported, `"md5"`},
		{"half a digest", fields{"os_hash_algo": nil}, "", errs.Unsupported, `""`},
		{"no digits", fields{"os_hash_value": "xyz"}, "", errs.Invalid, "no sha256"},
		{"short digest", fields{"os_hash_algo": "sha512"}, "", errs.Invalid, "no sha512"},
		{"negative", fields{"size": -5}, "", errs.Invalid, "cannot be"},
		{"far too large", fields{"min_disk": 1 << 40}, "", errs.Invalid, "cannot be"},
		{"other types", fields{"size": "many"}, "", errs.Unavailable, "not what this API"},
		{"another image", fields{"id": "00000000-0000-0000-0000-000000000000"}, "", errs.Unavailable, "another image"},
		{"too long", fields{"name": strings.Repeat("x", 2<<20)}, "", errs.Unavailable, "more than 1048576 bytes"},
	} {
		inCloud(t, func(t *testing.T, w *world, s *cloudServer) {
			s.record = c.record
			i, err := Glance(t.Context(), w.config(), Cloud{}, "glance://glance.example/"+imageA)
			if c.kind != "" {
				check(t, c.what, err, c.kind, classOf[c.kind], c.text)
			} else if err != nil || i.Format != c.format {
				t.Errorf("%s: %+v, %v; want the format %s", c.what, i, err, c.format)
			}
		})
	}
}

// TestGlanceBodies has downloads that differ from the record, or break.
func TestGlanceBodies(t *testing.T) {
	for _, c := range []struct {
		what   string
		record map[string]any
		server func(*cloudServer)
		kind   errs.Kind
		class  string
		text   string
	}{
		{"longer than the record", map[string]any{"size": 1000}, nil, errs.Unsafe, classCorrupt, "has 1000 by its record"},
		{"shorter than the record", map[string]any{"size": 4 << 20}, nil, errs.Unsafe, classCorrupt, "announces 3145728 bytes"},
		{"ends early for good", nil, func(s *cloudServer) { s.breaks = []int{100, 0, 0, 0, 0, 0} }, errs.Unsafe, classTruncated, "ended at byte 100 of 3145728"},
		{"ends early without a digest", map[string]any{"os_hash_algo": nil, "os_hash_value": nil}, func(s *cloudServer) { s.breaks = []int{100} }, errs.Unsafe, classTruncated, "names no version"},
		{"token refused meanwhile, without another", nil, func(s *cloudServer) { s.breaks, s.expires = []int{100}, []int{1, 2, 3} }, errs.Invalid, "", "401"},
	} {
		inCloud(t, func(t *testing.T, w *world, s *cloudServer) {
			s.record = c.record
			if c.server != nil {
				c.server(s)
			}
			i, err := Glance(t.Context(), w.config(), Cloud{}, "glance://glance.example/"+imageA)
			if err != nil {
				t.Fatalf("%s: %v", c.what, err)
			}
			b, err := i.Open(t.Context())
			if err == nil {
				_, err = io.Copy(io.Discard, b)
			}
			check(t, c.what, err, c.kind, c.class, c.text)
		})
	}
}

func TestKeystone(t *testing.T) {
	off := false
	withToken := Cloud{Region: "one", Auth: Auth{URL: "https://keystone.example", Token: "t0ken1"}}
	for _, c := range []struct {
		what   string
		cloud  Cloud
		source string
		server func(*world, *cloudServer)
		login  string
		kind   errs.Kind // empty: the image's bytes come
		text   string
	}{
		{"password", password, "glance:///" + imageA, nil,
			`POST /v3/auth/tokens {"auth":{"identity":{"methods":["password"],"password":{"user":{"domain":{"id":"default"},"name":"u","password":"s3cret"}}},"scope":{"project":{"domain":{"id":"default"},"name":"p"}}}}`, "", ""},
		{"ids", Cloud{Region: "one", Auth: Auth{URL: "https://keystone.example", UserID: "uid", Password: "s3cret", ProjectID: "pid"}}, "glance:///" + imageA, nil,
			`POST /v3/auth/tokens {"auth":{"identity":{"methods":["password"],"password":{"user":{"id":"uid","password":"s3cret"}}},"scope":{"project":{"id":"pid"}}}}`, "", ""},
		{"domains", Cloud{Region: "one", Auth: Auth{URL: "https://keystone.example", Username: "u", UserDomain: "d", Password: "s3cret", Project: "p", DefaultDomainName: "e"}}, "glance:///" + imageA, nil,
			`POST /v3/auth/tokens {"auth":{"identity":{"methods":["password"],"password":{"user":{"domain":{"name":"d"},"name":"u","password":"s3cret"}}},"scope":{"project":{"domain":{"name":"e"},"name":"p"}}}}`, "", ""},
		{"application credential", Cloud{AuthType: "v3applicationcredential", Region: "one", Auth: Auth{URL: "https://keystone.example/v3", CredentialID: "cid", CredentialSecret: "s3cret"}}, "glance:///" + imageA, nil,
			`POST /v3/auth/tokens {"auth":{"identity":{"application_credential":{"id":"cid","secret":"s3cret"},"methods":["application_credential"]}}}`, "", ""},
		{"application credential by name", Cloud{Region: "one", Auth: Auth{URL: "https://keystone.example", CredentialName: "c", UserID: "uid", CredentialSecret: "s3cret"}}, "glance:///" + imageA, nil,
			`POST /v3/auth/tokens {"auth":{"identity":{"application_credential":{"name":"c","secret":"s3cret","user":{"id":"uid"}},"methods":["application_credential"]}}}`, "", ""},
		{"token", withToken, "glance:///" + imageA, nil, "GET /v3/auth/catalog ", "", ""},
		{"the catalogue's endpoint by name", password, "glance://GLANCE.example:443/" + imageA, nil, "", "", ""},
		{"token and endpoint without Keystone", Cloud{ImageEndpoint: "https://glance.example", Auth: Auth{Token: "t0ken1"}}, "glance:///" + imageA,
			func(_ *world, s *cloudServer) { s.tokens = 1 }, "", "", ""},
		{"another endpoint", password, "glance://evil.example/" + imageA, nil, "", errs.Unsafe, "its token goes nowhere else"},
		{"another path", password, "glance://glance.example/other/" + imageA, nil, "", errs.Unsafe, "its token goes nowhere else"},
		{"no such region", Cloud{Region: "three", Auth: password.Auth}, "glance:///" + imageA, nil, "", errs.Invalid, "no image service"},
		{"no cloud", Cloud{}, "glance:///" + imageA, nil, "", errs.Invalid, "no cloud is configured"},
		{"wrong password", password, "glance:///" + imageA, func(_ *world, s *cloudServer) { s.status = 401 }, "", errs.Invalid, "keystone.example wants other credentials"},
		{"keystone redirects", password, "glance:///" + imageA, func(_ *world, s *cloudServer) { s.status = 307 }, "", errs.Unavailable, "307"},
		{"keystone down", password, "glance:///" + imageA, func(w *world, _ *cloudServer) { delete(w.servers, "93.184.216.40:443") }, "", errs.Unavailable, "connection refused"},
		{"glance down", password, "glance:///" + imageA, func(w *world, _ *cloudServer) { delete(w.servers, addrA+":443") }, "", errs.Unavailable, "connection refused"},
		{"catalogue to loopback", password, "glance:///" + imageA, func(_ *world, s *cloudServer) { s.glances = "https://127.0.0.1" }, "", errs.Unsafe, "loopback"},
		{"catalogue to http", password, "glance:///" + imageA, func(_ *world, s *cloudServer) { s.glances = "http://glance.example" }, "", errs.Unsafe, "without TLS"},
		{"keystone by http", Cloud{Auth: Auth{URL: "http://keystone.example", Username: "u", Password: "s3cret"}}, "glance:///" + imageA, nil, "", errs.Unsafe, "without TLS"},
		{"no such image", password, "glance:///00000000-0000-0000-0000-000000000000", nil, "", errs.NotFound, "404"},
		{"not verified", Cloud{Verify: &off, Auth: password.Auth}, "glance:///" + imageA, nil, "", errs.Invalid, "verify: false"},
		{"no URL", Cloud{Auth: Auth{Username: "u", Password: "s3cret"}}, "glance:///" + imageA, nil, "", errs.Invalid, "auth_url"},
		{"no password", Cloud{Auth: Auth{URL: "https://keystone.example", Username: "u"}}, "glance:///" + imageA, nil, "", errs.Invalid, "password is missing"},
		{"token expires", password, "glance:///" + imageA, func(_ *world, s *cloudServer) { s.breaks, s.expires = []int{100, 0}, []int{0, 2} }, "", "", ""},
	} {
		inCloud(t, func(t *testing.T, w *world, s *cloudServer) {
			w.names["evil.example"] = []string{addrA}
			if c.server != nil {
				c.server(w, s)
			}
			var b []byte
			i, err := Glance(t.Context(), w.config(), c.cloud, c.source)
			if err == nil {
				var body *Stream
				if body, err = i.Open(t.Context()); err == nil {
					b, err = io.ReadAll(body)
				}
			}
			if c.kind != "" {
				check(t, c.what, err, c.kind, classOf[c.kind], c.text)
			} else if err != nil || !bytes.Equal(b, s.body) {
				t.Errorf("%s: %d bytes, %v", c.what, len(b), err)
			} else if shown := fmt.Sprintf("%+v %#v", i, *i); strings.Contains(shown, "t0ken") || strings.Contains(shown, "s3cret") {
				t.Errorf("%s: the image shows a secret: %s", c.what, shown)
			}
			if c.login != "" && (len(s.logins) == 0 || s.logins[0] != c.login) {
				t.Errorf("%s: Keystone was asked %q, want %q", c.what, s.logins, c.login)
			}
			for _, r := range w.seen {
				if r.host != glance && r.host != "GLANCE.example:443" && r.host != keystone && r.header.Get("X-Auth-Token") != "" {
					t.Errorf("%s: %s was given a token", c.what, r.host)
				}
			}
		})
	}
}

// TestGlanceRedirect sends a download elsewhere, where the token must not go.
func TestGlanceRedirect(t *testing.T) {
	inCloud(t, func(t *testing.T, w *world, c *cloudServer) {
		w.serve(hostB, addrB, func(rw http.ResponseWriter, r *http.Request) { rw.Write(c.body) })
		w.serve("front.example", "93.184.216.50", func(rw http.ResponseWriter, r *http.Request) {
			if strings.HasSuffix(r.URL.Path, "/file") {
				http.Redirect(rw, r, "https://mirror.example/stored", http.StatusTemporaryRedirect)
				return
			}
			c.glance(rw, r)
		})
		c.glances = "https://front.example"
		i, err := Glance(t.Context(), w.config(), password, "glance:///"+imageA)
		if err != nil {
			t.Fatal(err)
		}
		s, err := i.Open(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		if b, err := io.ReadAll(s); err != nil || !bytes.Equal(b, c.body) {
			t.Errorf("%d bytes, %v", len(b), err)
		}
		last := w.seen[len(w.seen)-1]
		if last.host != hostB || last.header.Get("X-Auth-Token") != "" {
			t.Errorf("the last request went to %s with the headers %v", last.host, last.header)
		}
	})
}

func TestGlanceSources(t *testing.T) {
	for _, source := range []string{
		"glance://glance.example/", "glance://glance.example/disk", "glance://" + imageA, "glance:" + imageA,
		"glance://glance.example/" + imageA + "?x", "glance://u:s3cret@glance.example/" + imageA,
		"glance://glance.example/" + imageA + "/file", "glance+http:///" + imageA, "glances://glance.example/" + imageA,
		"glance://glance.example/%zzs3cret", "https://glance.example/" + imageA, "glance:///v2/" + imageA,
	} {
		inWorld(t, func(t *testing.T, w *world) {
			_, err := Glance(t.Context(), w.config(), Cloud{}, source)
			check(t, source, err, errs.Invalid, "", "")
			if len(w.dialled) > 0 {
				t.Errorf("%s: %v was dialled", source, w.dialled)
			}
		})
	}
}

func TestParseClouds(t *testing.T) {
	got, err := ParseClouds([]byte(`
clouds:
  mine:
    auth_type: v3password
    auth:
      auth_url: https://keystone.example:5000/v3
      username: admin
      password: "s3cret"
      project_name: demo
      user_domain_name: Default
      project_domain_name: Default
      system_scope: all
    region_name: RegionOne
    interface: internal
    identity_api_version: 3
    image_api_version: 2
  theirs:
    auth_type: v3applicationcredential
    auth: {auth_url: https://k.example, application_credential_id: '0123', application_credential_secret: t0ken}
  open:
    auth_type: none
    image_endpoint_override: https://glance.example
`))
	want := map[string]Cloud{
		"mine": {AuthType: "v3password", Region: "RegionOne", Interface: "internal", Auth: Auth{URL: "https://keystone.example:5000/v3",
			Username: "admin", Password: "s3cret", Project: "demo", UserDomain: "Default", ProjectDomain: "Default"}},
		"theirs": {AuthType: "v3applicationcredential", Auth: Auth{URL: "https://k.example", CredentialID: "0123", CredentialSecret: "t0ken"}},
		"open":   {AuthType: "none", ImageEndpoint: "https://glance.example"},
	}
	if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b Secret) bool { return string(a) == string(b) })); err != nil || diff != "" {
		t.Errorf("%v; difference:\n%s", err, diff)
	}
	for _, c := range []struct{ what, text, want string }{
		{"no YAML", "clouds: [s3cret", ""},
		{"a tab", "clouds:\n\tmine: s3cret", ""},
		{"wrong type", "clouds:\n  mine:\n    auth:\n      password: [s3cret]", "list stands"},
		{"a text for a cloud", "clouds:\n  mine: s3cret", "line 2"},
		{"a number", "clouds: {mine: {auth: {auth_url: 'https://k', username: u, password: 0123}}}", "a number"},
		{"nothing", "", "names no cloud"},
		{"another file", "public-clouds: {}", "names no cloud"},
		{"too long", strings.Repeat("#s3cret\n", 1<<14), "more than 65536"},
		{"a bomb", bomb(9), "aliases"},
		{"deep", "clouds: {mine: " + strings.Repeat("{s3cret: ", 7000), "line 1"},
		{"no user", "clouds: {mine: {auth: {auth_url: 'https://k', password: s3cret}}}", "cloud mine: the user"},
		{"no verification", "clouds: {mine: {verify: false, auth_type: none}}", "verify: false"},
		{"an authority", "clouds: {mine: {cacert: /etc/ca.pem, auth_type: none}}", "cacert"},
		{"another method", "clouds: {mine: {auth_type: v3kerberos, auth: {auth_url: 'https://k'}}}", `"v3kerberos"`},
	} {
		_, err := ParseClouds([]byte(c.text))
		kind := errs.Invalid
		if c.what == "another method" {
			kind = errs.Unsupported
		}
		check(t, c.what, err, kind, "", c.want)
	}
}

// bomb is YAML that stands for 10^n values.
func bomb(n int) string {
	text := "a1: &a1 [x, x, x, x, x, x, x, x, x, x]\n"
	for i := 2; i <= n; i++ {
		text += fmt.Sprintf("a%d: &a%d [%s]\n", i, i, strings.Repeat(fmt.Sprintf("*a%d, ", i-1), 10))
	}
	return text + fmt.Sprintf("clouds: {mine: {region_name: *a%d}}\n", n)
}

// TestSecret prints a cloud in every way there is.
func TestSecret(t *testing.T) {
	c := Cloud{Auth: Auth{Password: "s3cret", Token: "t0ken", CredentialSecret: "s3cret"}}
	var out bytes.Buffer
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%T"} {
		fmt.Fprintf(&out, verb+"\n", c)
		fmt.Fprintf(&out, verb+"\n", &c)
		fmt.Fprintf(&out, verb+"\n", c.Auth.Password)
	}
	fmt.Fprintln(&out, c.Auth.Token.String())
	json.NewEncoder(&out).Encode(c)
	yaml.NewEncoder(&out).Encode(c)
	slog.New(slog.NewTextHandler(&out, nil)).Info("cloud", "cloud", c, "password", c.Auth.Password)
	slog.New(slog.NewJSONHandler(&out, nil)).Info("cloud", "cloud", c, "password", c.Auth.Password)
	for _, s := range secrets {
		for _, form := range []string{s, fmt.Sprintf("%x", s), fmt.Sprintf("%X", s)} {
			if strings.Contains(out.String(), form) {
				t.Errorf("%q is in the output:\n%s", form, out.String())
			}
		}
	}
	if n := strings.Count(out.String(), hidden); n < 20 {
		t.Errorf("%s is %d times in the output, which shows too little:\n%s", hidden, n, out.String())
	}
}
