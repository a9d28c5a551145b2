package inspect_test

import (
	"bytes"
	"testing"

	"github.com/tarn-storage/tarn/diskfmt"
	"github.com/tarn-storage/tarn/diskfmt/qcow2"
	"github.com/tarn-storage/tarn/diskfmt/qcow2/inspect"
)

// TestLayered asks what a file reads from, which is refused and not told unless it
// is asked for.
func TestLayered(t *testing.T) {
	m := &memFile{}
	if err := qcow2.Create(m, qcow2.CreateOptions{VirtualSize: 1 << 20, BackingName: "base.raw", BackingFormat: diskfmt.Raw}); err != nil {
		t.Fatal(err)
	}
	for _, layered := range []bool{false, true} {
		_, rep, err := inspect.Open(t.Context(), bytes.NewReader(m.b), int64(len(m.b)), inspect.Limits{Layered: layered})
		name, format := "", ""
		if layered {
			name, format = "base.raw", "raw"
		}
		if !rep.Backing || rep.BackingName != name || rep.BackingFormat != format || (err == nil) != layered {
			t.Errorf("layered %v: %+v, %v; want the names %q and %q", layered, rep, err, name, format)
		}
	}
}
