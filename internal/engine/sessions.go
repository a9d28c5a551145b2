package engine

import (
	"context"
	"encoding/json"
	"sync"

	"github.com/tarn-storage/tarn/api"
	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/ingest"
	"github.com/tarn-storage/tarn/internal/journal"
)

// source is an import's input while its operation lives.
type source struct {
	given   ingest.Source
	details api.ImageDetails

	origin  *origin
	session *ingest.Session
	done    *converted
	end     context.CancelFunc
}

// sessions holds the sources of running imports: descriptors and workers, which
// die with the daemon. Its zero value is ready.
type sessions struct {
	mu sync.Mutex
	of map[journal.ID]*source
}

func (s *sessions) put(id journal.ID, src source) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.of == nil {
		s.of = map[journal.ID]*source{}
	}
	s.of[id] = &src
}

// get returns an import's source. One that died with the daemon is begun again
// where it can be fetched.
func (s *sessions) get(c *journal.Call) (*source, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if src, ok := s.of[c.Op.ID]; ok {
		return src, nil
	}
	d, ok := fetchable(c)
	if !ok {
		return nil, errs.New(errs.Cancelled, "image.import", string(c.Op.ID), "the source was lost with a restart of the daemon").WithHint("import it again")
	}
	if s.of == nil {
		s.of = map[journal.ID]*source{}
	}
	s.of[c.Op.ID] = &source{details: d}
	return s.of[c.Op.ID], nil
}

// fetchable returns what the journal keeps of an import's source, and whether
// that is enough to fetch it.
func fetchable(c *journal.Call) (api.ImageDetails, bool) {
	var r api.ImageImport
	err := json.Unmarshal(c.Op.Request, &r)
	return r.ImageDetails, err == nil && r.URL != ""
}

// drop forgets an import's source. It waits for nothing: the end of an operation
// is recorded in a transaction, long after its worker has ended.
func (s *sessions) drop(id journal.ID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.of, id)
}

// close ends the source's worker and its download, if it has them. Closing again
// does nothing.
func (s *source) close() {
	if s.session != nil {
		s.session.Close()
		s.origin.close()
		s.end()
	}
}

// lost is a handler that cannot go on after a restart: what it reads from died
// with the daemon.
type lost struct{ simple }

// Resumable reports false.
func (lost) Resumable(*journal.Call) bool { return false }

// fetched is a handler that goes on after a restart if its source can be fetched
// once more.
type fetched struct{ simple }

// Resumable reports whether the import's URL is in the journal.
func (fetched) Resumable(c *journal.Call) bool {
	_, ok := fetchable(c)
	return ok
}
