package httpapi

import (
	"bytes"
	"context"
	"errors"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/tarn-storage/tarn/api"
	"github.com/tarn-storage/tarn/internal/engine"
)

// lastWord notes whether file was open when the last line of an export was sent.
type lastWord struct {
	*httptest.ResponseRecorder
	file *os.File
	open []bool
}

func (w *lastWord) Write(b []byte) (int, error) {
	if bytes.Contains(b, []byte(`"done":true`)) || bytes.Contains(b, []byte(`"error"`)) {
		_, err := w.file.Stat()
		w.open = append(w.open, !errors.Is(err, os.ErrClosed))
	}
	return w.ResponseRecorder.Write(b)
}

// TestExportEndsClosed lets go of the caller's file before it tells him of the
// end: he may unmount what it lies on.
func TestExportEndsClosed(t *testing.T) {
	for name, failure := range map[string]error{"done": nil, "failed": errors.New("the disk broke")} {
		t.Run(name, func(t *testing.T) {
			f, err := os.Create(filepath.Join(t.TempDir(), "out"))
			if err != nil {
				t.Fatal(err)
			}
			r := httptest.NewRequest("POST", "/", nil)
			r = r.WithContext(context.WithValue(r.Context(), connKey{}, &conn{file: f}))
			w := &lastWord{httptest.NewRecorder(), f, nil}
			s := &Server{clock: time.Now}
			s.exportFile(w, r, &export{}, func(_ context.Context, _ string, _ api.Export, _ engine.Sink, progress func(int64, int64)) error {
				progress(1, 2)
				return failure
			})
			if len(w.open) != 1 || w.open[0] {
				t.Errorf("of the last line was told with the file open: %v, want once, false; the answer is %s", w.open, w.Body)
			}
		})
	}
}
