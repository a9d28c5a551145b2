package blockmap

import "sync"

// pages keeps the parts of a map that were read last. A page is never written
// after it was put.
type pages struct {
	mu   sync.RWMutex
	at   map[uint64][]byte
	ring []uint64 // the numbers of the pages, the oldest at next when it is full
	next int
}

func (c *pages) get(n uint64) []byte {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.at[n]
}

func (c *pages) put(n uint64, page []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.at[n] != nil {
		return
	}
	if c.at == nil {
		c.at = make(map[uint64][]byte)
	}
	if len(c.ring) < maxPages {
		c.ring = append(c.ring, n)
	} else {
		delete(c.at, c.ring[c.next])
		c.ring[c.next] = n
		c.next = (c.next + 1) % maxPages
	}
	c.at[n] = page
}
