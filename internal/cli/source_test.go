package cli

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tarn-storage/tarn/errs"
)

func TestUnreadableSource(t *testing.T) {
	if os.Geteuid() == 0 {
		t.Skip("root may read every file; run the test as another user")
	}
	path := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(path, []byte("secret"), 0); err != nil {
		t.Fatal(err)
	}
	f, err := openRegular(path)
	if !errors.Is(err, errs.Invalid) || !strings.Contains(err.Error(), "you may not read "+path) {
		t.Errorf("got %v, %v, want that it may not be read", f, err)
	}
}
