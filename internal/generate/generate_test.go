package generate

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/faults"
)

// tool runs a program that judges what was generated and returns its output.
func tool(t *testing.T, name string, args ...string) string {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C"}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
	return string(out)
}

// need skips the test when a program is missing, or fails it where CI is set.
func need(t *testing.T, names ...string) {
	t.Helper()
	for _, n := range names {
		found := false
		for _, dir := range []string{"/usr/sbin", "/usr/bin", "/sbin", "/bin"} {
			if _, err := os.Stat(filepath.Join(dir, n)); err == nil {
				found = true
			}
		}
		if !found {
			unavailable(t, n+" is not installed (packages e2fsprogs xfsprogs dosfstools util-linux genisoimage)")
		}
	}
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Getuid() != 0 {
		unavailable(t, "mounting needs root: run the tests with sudo")
	}
}

func unavailable(t *testing.T, why string) {
	t.Helper()
	if os.Getenv("CI") != "" {
		t.Fatal(why)
	}
	t.Skip(why)
}

// disk makes a sparse file that reads as zeroes.
func disk(t *testing.T, size int64) Target {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "disk"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	return Target{W: f, File: f, Size: size}
}

func run(t *testing.T, r Request, d Target) {
	t.Helper()
	if err := r.Run(t.Context(), d, nil); err != nil {
		t.Fatalf("%+v: %v", r, err)
	}
	fi, err := d.File.Stat()
	if err != nil || fi.Size() != d.Size {
		t.Fatalf("%+v: the disk has %d bytes, %v, want %d", r, fi.Size(), err, d.Size)
	}
}

// probe returns one of the values that blkid finds.
func probe(t *testing.T, d Target, tag string) string {
	t.Helper()
	return strings.TrimSpace(tool(t, "blkid", "-p", "-o", "value", "-s", tag, d.File.Name()))
}

func allocated(t *testing.T, d Target) int64 {
	t.Helper()
	fi, err := d.File.Stat()
	if err != nil {
		t.Fatal(err)
	}
	return fi.Sys().(*syscall.Stat_t).Blocks * 512
}

func checkFS(t *testing.T, fs FS, d Target) {
	t.Helper()
	switch fs {
	case Ext4:
		tool(t, "e2fsck", "-fn", d.File.Name())
	case XFS:
		tool(t, "xfs_repair", "-n", "-f", d.File.Name())
	case VFAT:
		tool(t, "fsck.vfat", "-n", d.File.Name())
	}
}

func TestFileSystems(t *testing.T) {
	need(t, "mkfs.ext4", "mkfs.xfs", "mkfs.vfat", "e2fsck", "xfs_repair", "fsck.vfat", "blkid")
	for _, row := range []struct {
		fs    FS
		label string
		size  int64
		most  int64 // bytes that may be allocated
	}{
		{Ext4, "ephemeral0", 8 * mib, mib},
		{Ext4, "", 64 * mib, mib},
		{Ext4, "-16 bytes: $(id)", 10<<30 + 4096, 16 * mib},
		{XFS, "ephemeral0", 300 * mib, 66 * mib},
		{XFS, "--help $(id)", 10<<30 + 4096, 66 * mib},
		{XFS, "", 1 << 30, 66 * mib},
		{VFAT, "ephemeral0", 128 * kib, mib},
		{VFAT, "-n $(id)", 64 * mib, mib},
		{VFAT, "", 10<<30 + 4096, 16 * mib},
	} {
		t.Run(fmt.Sprintf("%s/%q/%d", row.fs, row.label, row.size), func(t *testing.T) {
			r, d := Request{Kind: FileSystem, FS: row.fs, Label: row.label}, disk(t, row.size)
			run(t, r, d)
			run(t, r, d) // a repeat converges
			checkFS(t, row.fs, d)
			if got := probe(t, d, "TYPE"); got != string(row.fs) {
				t.Errorf("TYPE: got %q, want %q", got, row.fs)
			}
			if got := probe(t, d, "LABEL"); got != row.label {
				t.Errorf("LABEL: got %q, want %q", got, row.label)
			}
			if got := allocated(t, d); got > row.most {
				t.Errorf("%d bytes are allocated, want at most %d", got, row.most)
			}
		})
	}
}

func TestFileSystemsMount(t *testing.T) {
	needRoot(t)
	need(t, "mount", "umount")
	for fs, size := range map[FS]int64{Ext4: 64 * mib, XFS: 300 * mib, VFAT: 64 * mib} {
		t.Run(string(fs), func(t *testing.T) {
			d := disk(t, size)
			run(t, Request{Kind: FileSystem, FS: fs, Label: "ephemeral1"}, d)
			at := mount(t, d, string(fs), "")
			if err := os.WriteFile(filepath.Join(at, "file"), []byte("content"), 0o600); err != nil {
				t.Error(err)
			}
		})
	}
}

// mount mounts d for the time of the test. A kernel without the file system
// skips it: no package brings that.
func mount(t *testing.T, d Target, fs, options string) (at string) {
	t.Helper()
	_ = exec.Command("/sbin/modprobe", "-q", fs).Run()
	if known, err := os.ReadFile("/proc/filesystems"); err != nil || !strings.Contains(string(known), "\t"+fs+"\n") {
		t.Skipf("does not apply: this kernel cannot mount %s", fs)
	}
	at = t.TempDir()
	if options != "" {
		options = "," + options
	}
	tool(t, "mount", "-t", fs, "-o", "loop"+options, "--", d.File.Name(), at)
	t.Cleanup(func() { tool(t, "umount", at) })
	return at
}

func TestFullHost(t *testing.T) {
	needRoot(t)
	const size = 1 << 30
	for fs := range fileSystems {
		t.Run(string(fs), func(t *testing.T) {
			at := t.TempDir()
			tool(t, "mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", at)
			t.Cleanup(func() { tool(t, "umount", at) })
			f, err := os.Create(filepath.Join(at, "disk"))
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			if err := f.Truncate(size); err != nil {
				t.Fatal(err)
			}
			err = Request{Kind: FileSystem, FS: fs}.Run(t.Context(), Target{File: f, W: f, Size: size}, nil)
			if !errors.Is(err, errs.NoSpace) {
				t.Errorf("got %v (%v), want errs.NoSpace", err, errs.KindOf(err))
			}
		})
	}
}

func TestSwap(t *testing.T) {
	need(t, "swaplabel", "blkid")
	for _, size := range []int64{40 * kib, 4 * mib, 2 << 30, 16*tib - 4096} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			if size > tib {
				t.Setenv("TMPDIR", "/dev/shm") // ext4 has no room for the name of so many blocks
			}
			d := disk(t, size)
			run(t, Request{Kind: Swap, Label: LabelSwap}, d)
			if out := tool(t, "swaplabel", d.File.Name()); !strings.Contains(out, "LABEL: swap0\n") || !strings.Contains(out, "UUID:") {
				t.Errorf("swaplabel: %q", out)
			}
			if got := probe(t, d, "TYPE") + " " + probe(t, d, "VERSION") + " " + probe(t, d, "LABEL"); got != "swap 1 swap0" {
				t.Errorf("blkid: got %q, want %q", got, "swap 1 swap0")
			}
			if got := allocated(t, d); got > 64*kib {
				t.Errorf("%d bytes are allocated, want a page", got)
			}
		})
	}
}

// TestSwapEqualsMkswap holds the header against util-linux's own.
func TestSwapEqualsMkswap(t *testing.T) {
	need(t, "mkswap", "swaplabel")
	ours, theirs := disk(t, 64*mib), disk(t, 64*mib)
	run(t, Request{Kind: Swap, Label: "swap0"}, ours)
	id := probe(t, ours, "UUID")
	tool(t, "mkswap", "-q", "-p", "4096", "-L", "swap0", "-U", id, theirs.File.Name())
	a, b := make([]byte, 8192), make([]byte, 8192)
	for d, p := range map[Target][]byte{ours: a, theirs: b} {
		if _, err := d.File.ReadAt(p, 0); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(a, b) {
		t.Errorf("the header differs from mkswap's:\n%x\n%x", a[1024:1100], b[1024:1100])
	}
}

func TestBlankWritesNothing(t *testing.T) {
	inject := &effects{}
	defer faults.Install(inject)()
	if err := (Request{Kind: Blank}).Run(t.Context(), Target{Size: 4096}, nil); err != nil || inject.n != 0 {
		t.Errorf("got %v and %d effects, want none", err, inject.n)
	}
}

// effects counts effects and fails every one with err.
type effects struct {
	n   int
	err error
}

func (e *effects) Before(faults.Effect) error             { e.n++; return e.err }
func (e *effects) After(_ faults.Effect, err error) error { return err }

func TestMkfsIsAnEffect(t *testing.T) {
	inject := &effects{err: faults.ErrCrash}
	defer faults.Install(inject)()
	d := disk(t, 16*mib)
	err := Request{Kind: FileSystem, FS: Ext4}.Run(t.Context(), d, nil)
	if !errors.Is(err, faults.ErrCrash) || inject.n != 1 || allocated(t, d) != 0 {
		t.Errorf("got %v, %d effects, %d bytes, want the crash ahead of one effect", err, inject.n, allocated(t, d))
	}
}

func TestCancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for _, r := range []Request{{Kind: Swap}, {Kind: FileSystem, FS: Ext4}} {
		d := disk(t, 64*mib)
		if err := r.Run(ctx, d, nil); !errors.Is(err, errs.Cancelled) || allocated(t, d) != 0 {
			t.Errorf("%s: got %v, %d bytes written, want errs.Cancelled and none", r.Kind, err, allocated(t, d))
		}
	}
}

func TestValidate(t *testing.T) {
	input := &Input{ID: "x", SHA256: strings.Repeat("0", 64), Size: 1024}
	fs := func(f FS, label string) Request { return Request{Kind: FileSystem, FS: f, Label: label} }
	for _, row := range []struct {
		r    Request
		size int64
		want string // in the message; empty is valid
	}{
		{Request{Kind: Blank}, 4096, ""},
		{Request{Kind: Blank, Label: "x"}, 4096, "no label"},
		{Request{Kind: Blank, FS: Ext4}, 4096, "no file system"},
		{Request{}, 4096, "not known"},
		{Request{Kind: Swap, Input: input}, mib, "no input"},
		{Request{Kind: Swap, Time: time.Unix(1, 0)}, mib, "no time"},
		{Request{Kind: FileSystem, FS: "ntfs"}, mib, `"ntfs" is not known`},
		{fs(Ext4, strings.Repeat("x", 16)), 8 * mib, ""},
		{fs(Ext4, strings.Repeat("é", 8)), 8 * mib, ""},
		{fs(Ext4, strings.Repeat("x", 17)), 8 * mib, "17 bytes"},
		{fs(Ext4, "a\nb"), 8 * mib, "cannot store"},
		{fs(Ext4, "a\x00"), 8 * mib, "cannot store"},
		{fs(Ext4, "\xff"), 8 * mib, "cannot store"},
		{fs(Ext4, ""), 8*mib - 1, "too small"},
		{fs(XFS, strings.Repeat("x", 13)), 1 << 30, "13 bytes"},
		{fs(XFS, ""), 300*mib - 1, "too small"},
		{fs(XFS, ""), 300 * mib, ""},
		{fs(VFAT, strings.Repeat("x", 12)), mib, "12 bytes"},
		{fs(VFAT, "a.b"), mib, "cannot store"},
		{fs(VFAT, "é"), mib, "cannot store"},
		{fs(VFAT, " a"), mib, "cannot store"},
		{fs(VFAT, ""), 127 * kib, "too small"},
		{fs(VFAT, ""), 2 * tib, ""},
		{fs(VFAT, ""), 2*tib + 4096, "too large"},
		{Request{Kind: Swap}, 40*kib - 1, "too small"},
		{Request{Kind: Swap}, 40 * kib, ""},
		{Request{Kind: Swap}, 16*tib + 4096, "too large"},
		{Request{Kind: Swap, Label: strings.Repeat("x", 16)}, mib, "16 bytes"},
		{Request{Kind: ConfigDrive, Label: "cidata", Input: input}, 56 * kib, ""},
		{Request{Kind: ConfigDrive, Label: "cidata"}, mib, "spooled input"},
		{Request{Kind: ConfigDrive, Input: &Input{ID: "x", SHA256: "00"}}, mib, "SHA-256"},
		{Request{Kind: ConfigDrive, Input: &Input{ID: "x", SHA256: input.SHA256, Size: MaxSpool + 1}}, mib, "larger"},
	} {
		err := row.r.Validate(row.size)
		if row.want == "" && err != nil || row.want != "" && (!errors.Is(err, errs.Invalid) || !strings.Contains(err.Error(), row.want)) {
			t.Errorf("%+v of %d bytes: got %v, want %q", row.r, row.size, err, row.want)
		}
		if row.want != "" && row.r.Kind != Blank {
			if d := (Target{Size: row.size}); !errors.Is(row.r.Run(t.Context(), d, nil), errs.Invalid) {
				t.Errorf("%+v of %d bytes: Run does not validate", row.r, row.size)
			}
		}
	}
	var e *errs.Error
	if err := fs(XFS, "").Validate(mib); !errors.As(err, &e) || !strings.Contains(e.Hint, "300MiB") {
		t.Errorf("a small XFS: got %#v, want a hint with 300MiB", err)
	}
}

func TestRequestSurvivesTheJournal(t *testing.T) {
	want := Request{Kind: ConfigDrive, Label: "cidata", Time: time.Unix(1700000000, 0).UTC(),
		Input: &Input{ID: "x", SHA256: strings.Repeat("0", 64), Size: 1}}
	b, err := json.Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	var got Request
	if err := json.Unmarshal(b, &got); err != nil || *got.Input != *want.Input || !got.Time.Equal(want.Time) || got.Label != want.Label {
		t.Errorf("got %+v, %v, want %+v", got, err, want)
	}
	if b, _ := json.Marshal(Request{Kind: Blank}); string(b) != `{"kind":"blank"}` {
		t.Errorf("a blank request is %s", b)
	}
}
