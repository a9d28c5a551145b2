package ceph

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// SmallPool makes a Ceph pool that may hold size bytes and ends with t.
func (c *Cluster) SmallPool(t testing.TB, size int64) string {
	t.Helper()
	name := fmt.Sprintf("%s.small%d", c.Pool, c.spaces.Add(1))
	if err := c.pool(name); err != nil {
		t.Fatalf("ceph: %v", err)
	}
	t.Cleanup(func() { c.Run(t, "ceph", "osd", "pool", "rm", name, name, "--yes-i-really-really-mean-it") })
	c.Run(t, "ceph", "osd", "pool", "set-quota", name, "max_bytes", strconv.FormatInt(size, 10))
	return name
}

// piece is how large the objects are that fill a pool.
const piece = 8 << 20

// Fill writes as much into a pool as fits, and waits until the cluster says that
// it is full and how full it is.
func (c *Cluster) Fill(t testing.TB, pool string, size int64) {
	t.Helper()
	data := filepath.Join(t.TempDir(), "piece")
	if err := os.WriteFile(data, make([]byte, piece), 0o600); err != nil {
		t.Fatal(err)
	}
	for n := range size / piece {
		c.Run(t, "rados", "-p", pool, "put", fmt.Sprint("filler", n), data)
	}
	c.await(t, pool, true)
}

// Free removes what Fill wrote, but for left bytes, and waits until the cluster
// says so.
func (c *Cluster) Free(t testing.TB, pool string, left int64) {
	t.Helper()
	for n := left / piece; ; n++ {
		if _, err := c.Try("rados", "-p", pool, "rm", fmt.Sprint("filler", n), "--force-full"); err != nil {
			break
		}
	}
	c.await(t, pool, false)
}

// await waits until the pool is full, or not, for who writes and for who measures.
func (c *Cluster) await(t testing.TB, pool string, full bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); ; {
		var osd struct {
			Pools []struct {
				Name  string `json:"pool_name"`
				Flags string `json:"flags_names"`
				Quota int64  `json:"quota_max_bytes"`
			} `json:"pools"`
		}
		var df struct {
			Pools []struct {
				Name  string `json:"name"`
				Stats struct {
					Stored int64 `json:"stored"`
				} `json:"stats"`
			} `json:"pools"`
		}
		c.report(t, &osd, "osd", "dump")
		c.report(t, &df, "df", "detail")
		flagged, measured := false, false
		for _, p := range osd.Pools {
			if p.Name == pool {
				flagged = slices.Contains(strings.Split(p.Flags, ","), "full")
				for _, s := range df.Pools {
					measured = measured || s.Name == pool && s.Stats.Stored >= p.Quota
				}
			}
		}
		if flagged == full && measured == full {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("ceph: the pool %s does not become full: %v, want %v", pool, flagged, full)
		}
	}
}

func (c *Cluster) report(t testing.TB, v any, words ...string) {
	t.Helper()
	if err := json.Unmarshal([]byte(c.Run(t, append([]string{"ceph", "--format", "json"}, words...)...)), v); err != nil {
		t.Fatal(err)
	}
}
