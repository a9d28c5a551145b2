package crashtest

import "testing"

func TestVerify(t *testing.T) {
	content := func(s string, size int) []byte { return append([]byte(s), make([]byte, size-len(s))...) }
	seen := []Version{{Content: content("old", 1024)}, {Content: content("new", 2048)}}
	for what, row := range map[string]struct {
		got []byte
		ok  bool
	}{
		"the first":                 {content("old", 1024), true},
		"the last":                  {content("new", 2048), true},
		"the first, grown":          {content("old", 2048), true},
		"some bytes of each":        {content("oew", 2048), true},
		"a byte of none":            {content("nes", 2048), false},
		"a byte behind the end":     {append(content("old", 2047), 1), false},
		"a size of none":            {content("new", 1536), false},
		"less than what is durable": {content("old", 512), false},
	} {
		if err := Verify(row.got, seen); (err == nil) != row.ok {
			t.Errorf("%s: %v, want that it is accepted: %v", what, err, row.ok)
		}
	}
}

// TestCut records a write, a sync and two writes: behind each effect the disk is
// what those that are synced made it, with any of the others.
func TestCut(t *testing.T) {
	var rec Recorder
	for i, b := range []byte("abc") {
		if _, err := rec.WriteAt([]byte{b}, int64(i)); err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			if err := rec.Sync(); err != nil {
				t.Fatal(err)
			}
		}
	}
	seen := []Version{{0, true, nil}, {2, true, []byte("a")}, {3, false, []byte("ab")}, {4, false, []byte("abc")}}
	found := map[string][]Version{}
	for seed := range uint64(9) {
		cuts := Cut(t, Run{Seed: seed, Log: rec.Log, Seen: seen}, func(img []byte, seen []Version, _ bool) error {
			found[string(img)] = seen
			return nil
		})
		if cuts != 4*5 {
			t.Errorf("%d cuts, want four behind each of 4 effects and one before", cuts)
		}
	}
	for img, first := range map[string]int{"": 0, "a": 1, "ab": 1, "abc": 1, "a\x00c": 1} {
		got, ok := found[img]
		if !ok || len(got) == 0 || got[0].At != seen[first].At {
			t.Errorf("image %q was met with %v, want from %v", img, got, seen[first])
		}
	}
	if _, ok := found["\x00b"]; ok {
		t.Error("a write that was synced got lost")
	}
}
