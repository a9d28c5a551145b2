package layout

import (
	"sync"
	"sync/atomic"
)

// CacheBytes bounds the L2 entries that one reader keeps in memory.
const CacheBytes = 16 << 20

// slice is a part of an L2 table: the unit of reading and caching. A writer
// marks the bytes it changed; such a slice is never evicted.
type slice struct {
	off     uint64
	buf     []byte
	used    atomic.Bool
	dirtyLo int
	dirtyHi int // exclusive; 0 = clean
}

// tableCache is a clock cache of slices, keyed by host offset.
type tableCache struct {
	mu   sync.RWMutex
	m    map[uint64]*slice
	ring []*slice
	hand int
	max  int
}

func (c *tableCache) get(off uint64) *slice {
	c.mu.RLock()
	s := c.m[off]
	c.mu.RUnlock()
	if s != nil && !s.used.Load() {
		s.used.Store(true)
	}
	return s
}

// put keeps s, or returns the slice that another goroutine has put meanwhile.
// When all slices are dirty the cache grows past its bound: the writer bounds
// how many are.
func (c *tableCache) put(s *slice) *slice {
	c.mu.Lock()
	defer c.mu.Unlock()
	if have := c.m[s.off]; have != nil {
		return have
	}
	if c.m == nil {
		c.m = make(map[uint64]*slice)
	}
	c.m[s.off] = s
	if len(c.ring) < c.max {
		c.ring = append(c.ring, s)
		return s
	}
	for i := 0; i < 2*len(c.ring); i++ {
		c.hand = (c.hand + 1) % len(c.ring)
		old := c.ring[c.hand]
		if old.dirtyHi == 0 && !old.used.Swap(false) {
			delete(c.m, old.off)
			c.ring[c.hand] = s
			return s
		}
	}
	c.ring = append(c.ring, s)
	return s
}

// clusterCache keeps the last few decompressed clusters, so that small reads of
// one cluster decompress it once. Buffers are never written after insertion.
type clusterCache struct {
	mu   sync.Mutex
	keys []uint64
	bufs [][]byte
	next int
	max  int
}

func (c *clusterCache) get(key uint64) []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i, k := range c.keys {
		if k == key {
			return c.bufs[i]
		}
	}
	return nil
}

func (c *clusterCache) put(key uint64, buf []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.keys) < c.max {
		c.keys, c.bufs = append(c.keys, key), append(c.bufs, buf)
		return
	}
	c.keys[c.next], c.bufs[c.next] = key, buf
	c.next = (c.next + 1) % c.max
}
