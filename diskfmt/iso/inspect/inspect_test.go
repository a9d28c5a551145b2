package inspect_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/tarn-storage/tarn/diskfmt"
	"github.com/tarn-storage/tarn/diskfmt/internal/doortest"
	"github.com/tarn-storage/tarn/diskfmt/iso/inspect"
	"github.com/tarn-storage/tarn/diskfmt/strict"
	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/generate"
)

var _ diskfmt.Mapper = (*inspect.Source)(nil)

const (
	sector = 2048
	pvd    = 16 * sector
	boot   = 17 * sector
	svd    = 18 * sector
	end    = 19 * sector
	blocks = 26
)

// sound is a disc of 26 blocks with El Torito and Joliet, the first 32 KiB of
// which are those of a hybrid disc.
func sound() []byte {
	b := make([]byte, blocks*sector)
	copy(b[510:], "\x55\xaa")
	copy(b[512:], "EFI PART")
	for off, typ := range map[int]byte{pvd: 1, boot: 0, svd: 2, end: 255} {
		copy(b[off:], string([]byte{typ})+"CD001\x01")
	}
	volume(b[pvd:], 20)
	volume(b[svd:], 23)
	copy(b[svd+88:], "%/E")
	copy(b[boot+7:], "EL TORITO SPECIFICATION")
	binary.LittleEndian.PutUint32(b[boot+71:], 25)
	copy(b[22*sector:], "root directory")
	return b
}

// volume fills a descriptor whose path tables and root begin at block at.
func volume(d []byte, at uint32) {
	both4 := func(off int, v uint32) {
		binary.LittleEndian.PutUint32(d[off:], v)
		binary.BigEndian.PutUint32(d[off+4:], v)
	}
	both2 := func(off int, v uint16) {
		binary.LittleEndian.PutUint16(d[off:], v)
		binary.BigEndian.PutUint16(d[off+2:], v)
	}
	both4(80, blocks)
	both2(120, 1)
	both2(124, 1)
	both2(128, sector)
	both4(132, 10)
	binary.LittleEndian.PutUint32(d[140:], at)
	binary.BigEndian.PutUint32(d[148:], at+1)
	d[156], d[156+25], d[156+32] = 34, 2, 1
	both4(158, at+2)
	both4(166, sector)
}

func open(ctx context.Context, img []byte, lim strict.Limits) (*inspect.Source, strict.Report, error) {
	return inspect.Open(ctx, bytes.NewReader(img), int64(len(img)), lim)
}

func TestSoundDiscs(t *testing.T) {
	udf := func(b []byte) []byte {
		copy(b[20*sector:], "\x00BEA01\x01")
		copy(b[21*sector:], "\x00NSR03\x01")
		return b
	}
	for _, row := range []struct {
		name string
		img  []byte
		want string
	}{
		{"hybrid", sound(), "ISO 9660,El Torito,Joliet"},
		{"with UDF", udf(sound()), "ISO 9660,El Torito,Joliet,UDF"},
		{"longer than its volume", append(sound(), make([]byte, 1<<20)...), "ISO 9660,El Torito,Joliet"},
		{"enhanced", doortest.All(doortest.Put(svd+6, "\x02"), doortest.Put(svd+88, "\x00\x00\x00"))(sound()), "ISO 9660,El Torito,a second directory tree"},
	} {
		s, rep, err := open(t.Context(), row.img, strict.Limits{})
		if err != nil {
			t.Errorf("%s: %v", row.name, err)
			continue
		}
		if got := strings.Join(rep.Features, ","); got != row.want || rep.VirtualSize != int64(len(row.img)) || rep.DataBytes != rep.VirtualSize {
			t.Errorf("%s: Open reports %+v, want %s", row.name, rep, row.want)
		}
		head := row.img[:min(len(row.img), inspect.HeaderSize)]
		if _, err := inspect.Header(bytes.NewReader(head), int64(len(row.img)), strict.Limits{}); err != nil {
			t.Errorf("%s: Header: %v", row.name, err)
		}
		if !bytes.Equal(doortest.Contents(t, s, row.img), row.img) {
			t.Errorf("%s: the disk is not the file", row.name)
		}
		doortest.Bounds(t, s)
	}
}

func TestHostile(t *testing.T) {
	put, le, be, all := doortest.Put, doortest.LE32, doortest.BE32, doortest.All
	both := func(off int, v uint32) doortest.Change { return all(le(off, v), be(off+4, v)) }
	udf := func(b []byte) []byte {
		clear(b[pvd:])
		copy(b[pvd:], "\x00BEA01\x01")
		copy(b[pvd+sector:], "\x00NSR02\x01")
		return b
	}
	endless := func(b []byte) []byte {
		b = append(b, make([]byte, 64<<10)...)
		for off := boot; off < 40*sector; off += sector {
			copy(b[off:], "\x00CD001\x01some other boot record")
		}
		return b
	}
	doortest.Refuses(t, inspect.Open, sound, []doortest.Row{
		{"empty", doortest.Cut(0), strict.Empty, "empty"},
		{"one byte", doortest.Cut(1), strict.Mismatch, "0x8001"},
		{"another magic", put(pvd+1, "CD002"), strict.Mismatch, "4344303032"},
		{"UDF alone", udf, strict.Format, "UDF alone"},
		{"no primary descriptor", put(pvd, "\x02"), strict.Corrupt, "type 2"},
		{"version 2", put(pvd+6, "\x02"), strict.Version, "0x8000 is of version 2"},
		{"version 3 of a second one", put(svd+6, "\x03"), strict.Version, "version 3"},
		{"a partition", put(boot, "\x03"), strict.Feature, "partition"},
		{"an unknown type", put(boot, "\x63"), strict.Feature, "type 99"},
		{"no terminator", put(end+1, "xxxxx"), strict.Corrupt, "terminator"},
		{"no end", endless, strict.Limit, "16 volume descriptors"},
		{"sizes differ", le(pvd+80, blocks-1), strict.Corrupt, "size of the volume at 0x8050 is 25 in one"},
		{"set sizes differ", put(pvd+120, "\x02"), strict.Corrupt, "volume set"},
		{"numbers differ", put(pvd+124, "\x02"), strict.Corrupt, "number of the volume"},
		{"block sizes differ", put(pvd+128, "\x01"), strict.Corrupt, "size of a block"},
		{"path table sizes differ", put(pvd+132, "\x02"), strict.Corrupt, "path table"},
		{"root's places differ", put(pvd+158, "\x02"), strict.Corrupt, "place of the root"},
		{"root's sizes differ", put(pvd+166, "\x02"), strict.Corrupt, "size of the root"},
		{"blocks of 512", put(pvd+128, "\x00\x02\x02\x00"), strict.Feature, "512"},
		{"volume 2 of 1", put(pvd+124, "\x02\x00\x00\x02"), strict.Corrupt, "volume 2 of 1"},
		{"volume 0", put(pvd+124, "\x00\x00\x00\x00"), strict.Corrupt, "volume 0"},
		{"volume past the end", both(pvd+80, blocks+1), strict.Truncated, "the volume"},
		{"volume of 8 TiB", both(pvd+80, 1<<32-1), strict.Truncated, "the volume"},
		{"second tree past the end", both(svd+80, blocks+1), strict.Truncated, "the volume"},
		{"no path table", both(pvd+132, 0), strict.Corrupt, "no bytes"},
		{"path table outside", le(pvd+140, blocks), strict.Corrupt, "path table"},
		{"path table far away", be(pvd+148, 1<<32-1), strict.Corrupt, "path table"},
		{"optional path table outside", le(pvd+144, 1<<31), strict.Corrupt, "path table"},
		{"huge path table", both(pvd+132, 1<<32-1), strict.Corrupt, "path table"},
		{"path table on the descriptor", le(pvd+140, 16), strict.Overlap, "path table"},
		{"root outside", both(pvd+158, blocks), strict.Corrupt, "root directory"},
		{"root too long", both(pvd+166, 5*sector), strict.Corrupt, "root directory"},
		{"root on the system area", both(pvd+158, 0), strict.Overlap, "root directory"},
		{"root that is a file", put(pvd+156+25, "\x00"), strict.Corrupt, "0x809c"},
		{"root with a name", put(pvd+156+32, "\x20"), strict.Corrupt, "0x809c"},
		{"root of another length", put(pvd+156, "\x00"), strict.Corrupt, "0x809c"},
		{"root of no bytes", both(pvd+166, 0), strict.Corrupt, "0x809c"},
		{"boot catalogue outside", le(boot+71, 1<<31), strict.Corrupt, "boot catalogue"},
		{"boot catalogue on the descriptors", le(boot+71, 0), strict.Overlap, "boot catalogue"},
	})
	doortest.Truncations(t, inspect.Open, sound(), 0, 1, pvd, pvd+5, pvd+6, pvd+100, boot-1, boot, svd, end, end+sector-1, end+sector, blocks*sector-1)
}

func TestLimits(t *testing.T) {
	if _, _, err := open(t.Context(), sound(), strict.Limits{VirtualSize: blocks*sector - 1}); strict.ClassOf(err) != strict.Quota {
		t.Errorf("a file larger than allowed: got %v, want QUOTA", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := open(ctx, sound(), strict.Limits{}); !errors.Is(err, errs.Cancelled) {
		t.Errorf("a cancelled context: got %v, want %v", err, errs.Cancelled)
	}
}

// A file that becomes shorter after it was accepted must not give zeroes.
func TestShrunkFile(t *testing.T) {
	img := sound()
	s, _, err := inspect.Open(t.Context(), &shrinking{b: img}, int64(len(img)), strict.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.ReadAt(make([]byte, 4096), int64(len(img))-4096); strict.ClassOf(err) != strict.Truncated {
		t.Errorf("got %v, want TRUNCATED", err)
	}
}

// shrinking loses its end after the first read.
type shrinking struct{ b []byte }

func (s *shrinking) ReadAt(p []byte, off int64) (int, error) {
	n, err := bytes.NewReader(s.b).ReadAt(p, off)
	s.b = s.b[:len(s.b)-sector]
	return n, err
}

// Discs that genisoimage makes are accepted, and refused when their end is cut.
func TestDiscsOfGenisoimage(t *testing.T) {
	if _, err := exec.LookPath("genisoimage"); err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal("genisoimage is missing: install genisoimage")
		}
		t.Skip("genisoimage is missing: install genisoimage")
	}
	tree := t.TempDir()
	for name, n := range map[string]int{"boot.img": 2048, "a file with a long name.txt": 70_000, "dir/sub/data": 300_000} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(tree, name)), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(tree, name), bytes.Repeat([]byte("x"), n), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, row := range []struct{ options, want string }{
		{"", "ISO 9660"},
		{"-r -no-pad", "ISO 9660"},
		{"-J -r -V LABEL", "ISO 9660,Joliet"},
		{"-iso-level 4 -r", "ISO 9660,a second directory tree"},
		{"-udf -J -r", "ISO 9660,Joliet,UDF"},
		{"-b boot.img -no-emul-boot -c boot.cat -J -r", "ISO 9660,El Torito,Joliet"},
	} {
		file := filepath.Join(t.TempDir(), "disc.iso")
		args := append(strings.Fields(row.options), "-quiet", "-input-charset", "iso8859-1", "-o", file, tree)
		if out, err := exec.Command("genisoimage", args...).CombinedOutput(); err != nil {
			t.Fatalf("genisoimage %s: %v\n%s", strings.Join(args, " "), err, out)
		}
		img, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		s, rep, err := open(t.Context(), img, strict.Limits{})
		if err != nil {
			t.Errorf("genisoimage %s: %v", row.options, err)
			continue
		}
		if got := strings.Join(rep.Features, ","); got != row.want {
			t.Errorf("genisoimage %s: reported as %s, want %s", row.options, got, row.want)
		}
		if !bytes.Equal(doortest.Contents(t, s, img), img) {
			t.Errorf("genisoimage %s: the disk is not the file", row.options)
		}
		doortest.Truncations(t, inspect.Open, img, len(img)/2, len(img)-sector, len(img)-1)
	}
}

// Config drives that tarn makes itself are accepted.
func TestConfigDrive(t *testing.T) {
	entries := generate.NoCloud([]byte("#cloud-config\n"), []byte("instance-id: i\n"), nil)
	var spool bytes.Buffer
	if err := generate.WriteSpool(&spool, entries); err != nil {
		t.Fatal(err)
	}
	size, err := generate.Size(entries)
	if err != nil {
		t.Fatal(err)
	}
	size = (size + 4095) &^ 4095 // as volumes are
	f, err := os.Create(filepath.Join(t.TempDir(), "drive"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(spool.Bytes())
	r := generate.Request{Kind: generate.ConfigDrive, Label: "cidata", Time: time.Unix(1_770_000_000, 0).UTC(),
		Input: &generate.Input{ID: "spool", SHA256: hex.EncodeToString(sum[:]), Size: int64(spool.Len())}}
	if err := r.Run(t.Context(), generate.Target{W: f, File: f, Size: size}, &spool); err != nil {
		t.Fatal(err)
	}
	img, err := os.ReadFile(f.Name())
	if err != nil {
		t.Fatal(err)
	}
	if _, rep, err := open(t.Context(), img, strict.Limits{}); err != nil {
		t.Errorf("%+v, %v", rep, err)
	}
}

func FuzzInspect(f *testing.F) {
	f.Fuzz(func(t *testing.T, descriptors []byte, zeroes uint32) {
		img := append(make([]byte, pvd), descriptors...) // the system area is not looked at
		doortest.Fuzz(t, img, zeroes, inspect.Open, inspect.Header, inspect.HeaderSize)
	})
}
