package glance

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tarn-storage/tarn/api"
	"github.com/tarn-storage/tarn/test/system/tarntest"
)

// daemon starts the shipped tarnd with a pool, and leave to reach what runs here
// with the credentials in clouds.
func daemon(t *testing.T, clouds string) *tarntest.Daemon {
	t.Helper()
	dir := t.TempDir()
	file := tarntest.WriteFile(t, "clouds.yaml", []byte(clouds))
	d := tarntest.New(t, filepath.Join(dir, "state"))
	d.Config = tarntest.WriteFile(t, "tarnd.yaml",
		fmt.Appendf(nil, "sources:\n  allow: [127.0.0.1/32]\n  plain_http: [127.0.0.1/32]\n  clouds_file: %s\n", file))
	d.Start()
	d.Must("pool", "create", "main", "--driver", "dir", "--path", filepath.Join(dir, "pool"))
	return d
}

// imported asks that an image holds content and has Glance's min_disk, and
// deletes it.
func imported(t *testing.T, d *tarntest.Daemon, name string, content []byte) {
	t.Helper()
	i := tarntest.Get[api.Image](d, "image", "show", name)
	if i.Format != "raw" || i.MinDisk != 3<<30 || i.VirtualSize != int64(len(content)) {
		t.Errorf("%s: the image is %+v, want raw, %d bytes and a min_disk of 3 GiB", name, i, len(content))
	}
	file := filepath.Join(t.TempDir(), "out.raw")
	d.Must("image", "export", name, file, "--format", "raw")
	if got, err := os.ReadFile(file); err != nil || !bytes.Equal(got, content) {
		t.Errorf("%s: %d bytes (as uploaded: %v), %v", name, len(got), bytes.Equal(got, content), err)
	}
	d.Must("image", "delete", name, "--yes")
	nothing(t, d)
}

// nothing asks that no volume is in the pool and that doctor is silent.
func nothing(t *testing.T, d *tarntest.Daemon) {
	t.Helper()
	if l := tarntest.Get[api.List[api.Volume]](d, "volume", "list"); len(l.Items) != 0 {
		t.Errorf("volumes are left: %+v", l.Items)
	}
	d.AssertHealthy()
}

// fails imports what must be refused with a status and a message.
func fails(t *testing.T, d *tarntest.Daemon, status int, text string, args ...string) {
	t.Helper()
	r := d.Want(status, append([]string{"image", "import", "refused"}, args...)...)
	if out := r.String(); !strings.Contains(out, text) {
		t.Errorf("tarn image import %v says %s, want %q", args, out, text)
	}
	nothing(t, d)
	if strings.Contains(d.Log(), "s3cret") {
		t.Error("a secret is in the daemon's log")
	}
}

// bootable is content that looks like nothing but a raw disk.
func bootable(n int) []byte {
	b := random(n)
	copy(b, "\xeb\x3c\x90tarn")
	return b
}

// importFromGlance imports with the shipped programs from Glance, straight and
// through a proxy that spoils what it says.
func importFromGlance(t *testing.T, s service) {
	d := daemon(t, "clouds:\n  unused:\n    auth_type: none\n")
	content := bootable(7 << 20)
	id := upload(t, s.glance, "", disk("raw"), content)
	d.Must("image", "import", "straight", plain(s.glance, id))
	imported(t, d, "straight", content)
	c := cut(t, s.glance, 2<<20)
	c.cuts.Store(3)
	d.Must("image", "import", "resumed", plain(c.url, id), "--format", "raw")
	imported(t, d, "resumed", content)
	if v := tarntest.Get[api.Verdict](d, "image", "inspect", plain(s.glance, id)); v.Verdict != "accept" || v.Format != "raw" {
		t.Errorf("inspect says %+v", v)
	}

	to, _ := url.Parse(s.glance)
	proxy := httputil.NewSingleHostReverseProxy(to)
	status := 0
	proxy.ModifyResponse = func(r *http.Response) error {
		if !strings.HasSuffix(r.Request.URL.Path, "/file") {
			return nil
		}
		if status != 0 {
			r.StatusCode = status
			return nil
		}
		b, err := io.ReadAll(r.Body)
		b[len(b)/2] ^= 1
		r.Body = io.NopCloser(bytes.NewReader(b))
		return err
	}
	spoilt := httptest.NewServer(proxy)
	defer spoilt.Close()
	fails(t, d, 5, "CHECKSUM", plain(spoilt.URL, id))
	status = http.StatusUnauthorized
	fails(t, d, 2, "credentials", plain(spoilt.URL, id))
	status = http.StatusNotFound
	fails(t, d, 3, "404", plain(spoilt.URL, id))

	fails(t, d, 5, "FORMAT_MISMATCH", plain(s.glance, id), "--format", "qcow2")
	fails(t, d, 5, "CHECKSUM", plain(s.glance, id), "--sha512", strings.Repeat("0", 128))
	fails(t, d, 3, "404", plain(s.glance, "00000000-0000-0000-0000-000000000000"))
	fails(t, d, 5, "FORMAT_MISMATCH", plain(s.glance, upload(t, s.glance, "", disk("qcow2"), content)))
	spoilt.Close()
	fails(t, d, 8, "refused", plain(spoilt.URL, id))
}

// importWithKeystone imports with the shipped programs as the clouds say.
func importWithKeystone(t *testing.T, clouds, id string, content []byte) {
	d := daemon(t, clouds)
	for _, cloud := range []string{"password", "credential", "token"} {
		d.Must("image", "import", "by-"+cloud, "glance:///"+id, "--cloud", cloud)
		imported(t, d, "by-"+cloud, content)
	}
	fails(t, d, 2, "other credentials", "glance:///"+id, "--cloud", "wrong")
	fails(t, d, 2, "other credentials", "glance:///"+id, "--cloud", "wrong-token")
	fails(t, d, 3, "no cloud", "glance:///"+id, "--cloud", "missing")
	fails(t, d, 2, "no cloud", "glance:///"+id)
}
