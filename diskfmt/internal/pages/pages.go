// Package pages keeps the parts of a container's table that were read last. It
// refuses to read them itself, and to keep more than 256.
package pages

import "sync"

// Most is how many pages are kept.
const Most = 256

// Cache holds pages by their numbers, the newest Most of them. A page is never
// written after it was put. Its zero value is ready, and it is safe for concurrent
// use.
type Cache struct {
	mu   sync.RWMutex
	at   map[uint64][]byte
	ring []uint64 // the numbers of the pages, the oldest at next when it is full
	next int
}

// Get returns page n, nil when it is not kept.
func (c *Cache) Get(n uint64) []byte {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.at[n]
}

// Put keeps a page in the place of the oldest.
func (c *Cache) Put(n uint64, page []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.at[n] != nil {
		return
	}
	if c.at == nil {
		c.at = make(map[uint64][]byte)
	}
	if len(c.ring) < Most {
		c.ring = append(c.ring, n)
	} else {
		delete(c.at, c.ring[c.next])
		c.ring[c.next] = n
		c.next = (c.next + 1) % Most
	}
	c.at[n] = page
}
