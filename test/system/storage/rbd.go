package storage

import (
	"fmt"
	"os/exec"
	"strings"
	"testing"

	"github.com/tarn-storage/tarn/api"
	"github.com/tarn-storage/tarn/test/system/ceph"
	"github.com/tarn-storage/tarn/test/system/tarntest"
)

// RBD is a namespace of a Ceph cluster, for a user with a key of its own; where it
// is small, a Ceph pool with a quota.
var RBD = Technology{Name: "rbd", Raw: true, Slow: true, New: newRBD, Small: smallRBD}

func newRBD(t testing.TB, _ int64) *Storage {
	c := ceph.Start(t)
	return onRBD(t, c, c.Namespace(t))
}

func smallRBD(t testing.TB, size int64) *Storage {
	c := ceph.Start(t)
	at := c.SmallPool(t, size)
	s := onRBD(t, c, at)
	s.Fill = func(t testing.TB) { t.Helper(); c.Fill(t, at, size) }
	s.Free = func(t testing.TB, left int64) { t.Helper(); c.Free(t, at, left) }
	return s
}

func onRBD(t testing.TB, c *ceph.Cluster, at string) *Storage {
	user := strings.NewReplacer("/", "-").Replace(at)
	key := c.Key(t, user)
	return &Storage{
		Request: api.PoolCreate{Driver: "rbd", Source: api.PoolSource{CephPool: at, CephConf: c.Conf, CephUser: user, SecretFile: key}},
		Args:    []string{"--driver", "rbd", "--rbd-pool", at, "--ceph-conf", c.Conf, "--rbd-user", user, "--rbd-secret-file", key},
		Read: func(t testing.TB, v api.Volume) []byte {
			t.Helper()
			return []byte(c.Run(t, "rbd", "export", "--no-progress", at+"/"+v.Name, "-"))
		},
		Write: func(t testing.TB, v api.Volume, offset int64, b []byte) {
			t.Helper()
			what := fmt.Sprintf("write -s %s %d %d", tarntest.WriteFile(t, "data", b), offset, len(b))
			out, err := exec.Command(tarntest.NeedTool(t, "qemu-io"), "--image-opts", node(c, at, v), "-c", what, "-c", "flush").CombinedOutput()
			if err != nil || strings.Contains(string(out), "failed") {
				t.Fatalf("qemu-io: %v\n%s", err, out)
			}
		},
		Hold: func(t testing.TB, v api.Volume) func() {
			t.Helper()
			return hold(t, node(c, at, v))
		},
		Left: func(t testing.TB) (names []string) {
			t.Helper()
			for name := range strings.FieldsSeq(c.Run(t, "rbd", "ls", at)) {
				if name != ".tarn.pool" {
					names = append(names, name)
				}
			}
			return names
		},
	}
}

// node names a volume to QEMU's driver.
func node(c *ceph.Cluster, at string, v api.Volume) string {
	pool, namespace, _ := strings.Cut(at, "/")
	s := "driver=raw,file.driver=rbd,file.conf=" + c.Conf + ",file.pool=" + pool + ",file.image=" + v.Name
	if namespace != "" {
		s += ",file.namespace=" + namespace
	}
	return s
}
