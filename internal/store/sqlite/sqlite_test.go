package sqlite_test

import (
	"testing"

	"github.com/tarn-storage/tarn/internal/store"
	"github.com/tarn-storage/tarn/internal/store/sqlite"
	"github.com/tarn-storage/tarn/internal/store/storetest"
)

func TestStore(t *testing.T) {
	storetest.Run(t, func(t *testing.T) func(*testing.T) *store.Store {
		dir := t.TempDir()
		return func(t *testing.T) *store.Store { return open(t, sqlite.Options{Dir: dir}) }
	})
}

func open(t testing.TB, o sqlite.Options) *store.Store {
	t.Helper()
	s, err := sqlite.Open(t.Context(), o)
	if err != nil {
		t.Fatalf("open: %v", err)
	}
	return s
}
