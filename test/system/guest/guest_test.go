package guest_test

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tarn-storage/tarn/api"
	"github.com/tarn-storage/tarn/test/system/guest"
)

// blank makes a file of size zero bytes and returns its path.
func blank(t *testing.T, name string, size int64) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, size); err != nil {
		t.Fatal(err)
	}
	return path
}

func run(t *testing.T, argv ...string) {
	t.Helper()
	if out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput(); err != nil {
		t.Fatalf("%q: %v\n%s", argv, err, out)
	}
}

func drive(id, path, device string) []string {
	return []string{
		"-blockdev", fmt.Sprintf("driver=raw,node-name=%s,file.driver=file,file.filename=%s", id, path),
		"-device", fmt.Sprintf("%s,drive=%s,serial=%s", device, id, serial(id)),
	}
}

func serial(id string) string { return id + strings.Repeat("0", 20-len(id)) }

func TestGuestSeesEveryBus(t *testing.T) {
	root := filepath.Join(t.TempDir(), "root.raw")
	run(t, "cp", "--sparse=always", "--reflink=auto", guest.Image(t), root)
	ext4 := blank(t, "ext4", 64<<20)
	run(t, "/usr/sbin/mkfs.ext4", "-q", "-L", "ephemeral0", ext4)
	swap := blank(t, "swap", 16<<20)
	run(t, "/usr/sbin/mkswap", "-q", swap)
	data := blank(t, "data", 8<<20)

	m := guest.Machine{Args: slices.Concat(
		drive("root", root, "virtio-blk-pci,bootindex=1"),
		drive("eph", ext4, "virtio-blk-pci"),
		[]string{"-device", "virtio-scsi-pci,id=scsi0"},
		drive("swap", swap, "scsi-hd,bus=scsi0.0"),
		drive("data", data, "ide-hd,bus=ide.0"),
	)}
	report, err := m.Boot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if report.Boots != 1 {
		t.Errorf("boots of a fresh image: got %d, want 1", report.Boots)
	}
	for _, want := range []api.Disk{
		{Role: "root", Serial: serial("root"), Size: 640 << 20, Source: api.DiskSource{Kind: "image"}},
		{Role: "ephemeral", Serial: serial("eph"), Size: 64 << 20, Source: api.DiskSource{Kind: "filesystem", FS: "ext4", Label: "ephemeral0"}},
		{Role: "swap", Serial: serial("swap"), Size: 16 << 20, Source: api.DiskSource{Kind: "swap"}},
		{Role: "data", Serial: serial("data"), Size: 8 << 20, Source: api.DiskSource{Kind: "blank"}},
	} {
		if bad := report.Check(want); len(bad) > 0 {
			t.Errorf("%s disk: %q", want.Role, bad)
		}
	}
	d, _ := report.Disk(serial("data"))
	zeroes := sha256.Sum256(make([]byte, 64<<10))
	if want := hex.EncodeToString(zeroes[:]); d.HeadSHA256 != want {
		t.Errorf("head of a blank disk: got %s, want %s", d.HeadSHA256, want)
	}
}

func TestNoReportIsSaidSo(t *testing.T) {
	guest.Image(t) // for its check that QEMU is there
	t.Setenv("TARN_GUEST_ACCEL", "tcg")
	m := guest.Machine{
		Args:    drive("empty", blank(t, "empty", 1<<20), "virtio-blk-pci,bootindex=1"),
		Timeout: 3 * time.Second,
	}
	_, err := m.Boot(t.Context())
	if err == nil || !strings.Contains(err.Error(), "no report within 3s") {
		t.Errorf("boot of an empty disk: got %v, want no report within 3s", err)
	}
	m.Args = append(m.Args, "-device", "no-such-device")
	_, err = m.Boot(t.Context())
	if err == nil || !strings.Contains(err.Error(), "no-such-device") {
		t.Errorf("boot with a wrong argument: got %v, want what QEMU said", err)
	}
}

func TestCheckNamesEveryDifference(t *testing.T) {
	report := guest.Report{Disks: []guest.Disk{
		{Serial: "a", Size: 1 << 20, Type: "xfs", Label: "other"},
		{Serial: "b", Size: 1 << 20, Label: "cidata", ReadOnly: true, Config: &guest.Config{InstanceID: "i"}},
	}}
	tests := []struct {
		name string
		disk api.Disk
		want []string
	}{
		{"all right", api.Disk{Serial: "b", Size: 1 << 20, ReadOnly: true, Source: api.DiskSource{Kind: "cidata"}}, nil},
		{"missing", api.Disk{Serial: "c"}, []string{"no disk with serial c"}},
		{"wrong file system", api.Disk{Serial: "a", Size: 2 << 20, Source: api.DiskSource{Kind: "filesystem", FS: "ext4", Label: "ephemeral0"}},
			[]string{"size: got 1048576, want 2097152", "file system: got xfs, want ext4", "label: got other, want ephemeral0", "mounted and written to: got false, want true"}},
		{"not blank", api.Disk{Serial: "a", Size: 1 << 20, Source: api.DiskSource{Kind: "blank"}}, []string{"content: got xfs, want "}},
		{"not swap", api.Disk{Serial: "a", Size: 1 << 20, Source: api.DiskSource{Kind: "swap"}}, []string{"file system: got xfs, want swap", "swapped to: got false, want true"}},
		{"not the root", api.Disk{Serial: "a", Size: 1 << 20, Role: "root"}, []string{"root: got false, want true"}},
	}
	for _, tt := range tests {
		if got := report.Check(tt.disk); !slices.Equal(got, tt.want) {
			t.Errorf("%s: got %q, want %q", tt.name, got, tt.want)
		}
	}
}
