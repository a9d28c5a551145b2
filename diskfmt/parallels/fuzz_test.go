package parallels_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"testing"

	"github.com/tarn-storage/tarn/diskfmt"
	"github.com/tarn-storage/tarn/diskfmt/parallels"
	"github.com/tarn-storage/tarn/errs"
)

// FuzzOpen: whatever the bytes, the trusted door and Repair answer without
// panicking, every error is errs.Corrupt, extents advance, and what Repair closed
// opens.
func FuzzOpen(f *testing.F) {
	f.Add(create(f, 64<<10, 4096).B)
	f.Fuzz(func(t *testing.T, img []byte) {
		if len(img) > 1<<20 {
			return
		}
		want := record(64<<10, 4096, nil)
		if len(img) >= 64 { // so that it gets past the comparison with its record
			sectors, tracks := binary.LittleEndian.Uint64(img[36:]), binary.LittleEndian.Uint32(img[28:])
			if tracks >= 1 && tracks <= 256 && tracks&(tracks-1) == 0 {
				want.ClusterSize = int64(tracks) * 512
			}
			if sectors < 1<<11 {
				want.VirtualSize = int64(sectors) * 512
			}
		}
		wantCorrupt := func(what string, err error) {
			if !errors.Is(err, errs.Corrupt) {
				t.Errorf("%s: %v is not corrupt", what, err)
			}
		}
		if r, err := parallels.OpenLive(bytes.NewReader(img), int64(len(img)), want); err != nil {
			wantCorrupt("OpenLive", err)
		} else if _, err := r.ReadAt(make([]byte, r.Size()), 0); err != nil {
			wantCorrupt("ReadAt", err)
		}
		m := inMemory(bytes.Clone(img))
		if left, err := parallels.Abandoned(m); err == nil && left {
			if _, err := parallels.Repair(m, want); err != nil {
				wantCorrupt("Repair", err)
				return
			}
			if left, _ := parallels.Abandoned(m); left {
				t.Error("after Repair the image is in use")
			}
			if _, err := parallels.Open(m, m.Size(), want); err != nil {
				t.Errorf("after Repair: %v", err)
			}
		}
		r, err := parallels.Open(m, m.Size(), want)
		if err != nil {
			wantCorrupt("Open", err)
			return
		}
		got := content(t, r, nil)
		w, err := parallels.OpenWriter(m, want, nil, parallels.Options{})
		if err != nil {
			t.Fatal(err)
		}
		if len(got) > 0 {
			p := pattern(1, (len(got)+1)/2)
			copy(got, p)
			if _, err := w.WriteAt(p, 0); err != nil {
				t.Fatal(err)
			}
			if err := w.Close(); err != nil {
				t.Fatal(err)
			}
			if r, err = parallels.Open(m, m.Size(), want); err != nil {
				t.Fatal(err)
			}
			wantContent(t, "after a write", content(t, r, nil), got)
		}
	})
}

var _ diskfmt.Reader = (*parallels.Writer)(nil)
