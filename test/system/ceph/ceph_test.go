package ceph_test

import (
	"strings"
	"testing"

	"github.com/tarn-storage/tarn/test/system/ceph"
)

func TestCluster(t *testing.T) {
	c := ceph.Start(t)
	if again := ceph.Start(t); again != c {
		t.Error("a second Start gave another cluster")
	}
	if got := strings.TrimSpace(c.Run(t, "ceph", "fsid")); got != c.FSID {
		t.Errorf("fsid: got %q, want %q", got, c.FSID)
	}
	one, two := c.Namespace(t), c.Namespace(t)
	c.Run(t, "rbd", "create", "--size", "1M", one+"/image")
	if got := c.Run(t, "rbd", "ls", one); got != "image\n" {
		t.Errorf("%s holds %q, want the image", one, got)
	}
	if got := c.Run(t, "rbd", "ls", two); got != "" {
		t.Errorf("%s holds %q, want nothing", two, got)
	}
	key := c.Key(t, "guest")
	if got := c.Run(t, "rbd", "--id", "guest", "--keyfile", key, "--keyring", "/dev/null", "ls", one); got != "image\n" {
		t.Errorf("with a key of its own: %q", got)
	}
	if _, err := c.Try("rbd", "ls", "missing"); err == nil {
		t.Error("a pool that does not exist was listed")
	}
}
