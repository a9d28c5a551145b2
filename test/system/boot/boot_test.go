// Package boot_test boots real guests from disks that tarn made, as QEMU's own
// user, and holds what tarn promises a virtual machine: it sees every disk as
// recorded and never otherwise, and it cannot write its image.
package boot_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/tarn-storage/tarn/api"
	"github.com/tarn-storage/tarn/test/system/fsloop"
	"github.com/tarn-storage/tarn/test/system/guest"
	"github.com/tarn-storage/tarn/test/system/storage"
	"github.com/tarn-storage/tarn/test/system/tarntest"
)

const (
	dataSize = 8 << 20
	grown    = 1 << 30
)

// TestGuestBootsEverywhere runs the life of a virtual machine with an overlay as
// its root disk, with a reflink, and with a Parallels image; elsewhere one boot.
func TestGuestBootsEverywhere(t *testing.T) {
	fsloop.NeedRoot(t)
	image := guest.Image(t)
	storage.Run(t, []storage.Technology{storage.On("dir", "ext4"), storage.On("dir", "xfs"), storage.On("ploop", "xfs")}, func(t *testing.T, tech storage.Technology) {
		t.Parallel()
		h := newHost(t, tech, image)
		switch tech.Name {
		case "dir/ext4":
			h.life("qcow2")
		case "ploop/xfs":
			h.file = "root.hds"
			h.life("raw")
		case "dir/xfs":
			h.life("raw")
		default:
			h.once()
		}
	})
}

// host is a daemon with a pool of QEMU's user, an image and an instance.
type host struct {
	*tarntest.Daemon
	t     *testing.T
	user  guest.User
	store *storage.Storage
	base  api.Volume
	file  string // of a volume that is a folder

	secret string // of the storage, which no argument may have
}

func newHost(t *testing.T, tech storage.Technology, image string) *host {
	store := tech.New(t, 4<<30) // first, as it goes last
	h := &host{Daemon: tarntest.Start(t, filepath.Join(t.TempDir(), "state")), t: t, user: guest.QEMUUser(t), store: store}
	args := append([]string{"pool", "create", "main"}, h.store.Args...)
	if h.store.Dir != "" {
		guest.LetPass(t, filepath.Dir(h.store.Dir))
		args = append(args, "--owner", h.user.Owner)
	}
	h.own(args)
	h.Must(args...)
	h.Must("image", "import", "debian", image, "--format", "raw")
	header := base64.StdEncoding.EncodeToString(attackHeader())
	userData := tarntest.WriteFile(t, "user-data", []byte("#cloud-config\ntarn-write vdd 0 "+header+"\n"))
	h.Must("instance", "create", "web1", "--root", "debian", "--ephemeral", "128M,fs=ext4", "--swap", "64M", "--data", "8M", "--user-data", userData)
	for _, v := range tarntest.Get[api.List[api.Volume]](h.Daemon, "volume", "list").Items {
		if v.Kind == "base" {
			h.base = v
		}
	}
	return h
}

// own has QEMU's user read the files of a cluster that args name: its own copy of
// the configuration, without the administrator's keyring, and the key.
func (h *host) own(args []string) {
	h.t.Helper()
	for i := range len(args) - 1 {
		if args[i] != "--ceph-conf" && args[i] != "--rbd-secret-file" {
			continue
		}
		b, err := os.ReadFile(args[i+1])
		if err != nil {
			h.t.Fatal(err)
		}
		b = regexp.MustCompile(`(?m)^keyring =.*$`).ReplaceAll(b, nil)
		path := tarntest.WriteFile(h.t, "cluster", b)
		if err := os.Chown(path, int(h.user.Credential.Uid), int(h.user.Credential.Gid)); err != nil {
			h.t.Fatal(err)
		}
		guest.LetPass(h.t, filepath.Dir(path))
		args[i+1] = path
		if args[i] == "--rbd-secret-file" {
			h.secret = strings.TrimSpace(string(b))
		}
	}
}

// attackHeader is a qcow2 header that names a file of the host as its backing.
func attackHeader() []byte {
	b := make([]byte, 512)
	copy(b, "QFI\xfb\x00\x00\x00\x03")
	backing := "/etc/passwd"
	b[15], b[19] = 112, byte(len(backing))
	b[23], b[29] = 16, 0x80 // clusters of 64 KiB, 8 MiB
	copy(b[112:], backing)
	return b
}

func (h *host) disks() map[string]api.Disk {
	h.t.Helper()
	out := map[string]api.Disk{}
	for _, d := range tarntest.Get[api.List[api.Disk]](h.Daemon, "disk", "list", "--instance", "web1").Items {
		out[d.Name] = d
	}
	return out
}

// boot attaches the disks and starts the machine. While its boot loader is at
// work, running runs.
func (h *host) boot(running func()) guest.Report {
	h.t.Helper()
	attach := func() []string {
		return tarntest.Get[api.Attachment](h.Daemon, "instance", "attach", "web1", "--as", "qemu").QEMU
	}
	args := attach()
	if all := strings.Join(args, " "); h.secret != "" && (strings.Contains(all, h.secret) || !strings.Contains(all, "key-secret")) {
		h.t.Errorf("QEMU's arguments have the key itself, or none: %s", all)
	}
	alive := &firstWrite{seen: make(chan struct{})}
	over := make(chan struct{})
	var during sync.WaitGroup
	during.Go(func() {
		select {
		case <-alive.seen:
			running()
		case <-over:
		}
	})
	report, err := guest.Machine{Args: args, User: h.user.Credential, Console: alive,
		Say: func(string) { attach() }, // before another try: a machine that showed no life was killed
	}.Boot(h.t.Context())
	close(over)
	during.Wait()
	if err != nil {
		h.t.Fatal(err)
	}
	return report
}

// firstWrite closes seen when it is written to.
type firstWrite struct {
	once sync.Once
	seen chan struct{}
}

func (w *firstWrite) Write(p []byte) (int, error) {
	w.once.Do(func() { close(w.seen) })
	return len(p), nil
}

// sees fails unless the guest saw exactly the disks that tarn has.
func (h *host) sees(r guest.Report) {
	h.t.Helper()
	disks := h.disks()
	for name, d := range disks {
		if bad := r.Check(d); len(bad) > 0 {
			h.t.Errorf("%s in the guest: %q", name, bad)
		}
		if seen, _ := r.Disk(d.Serial); seen.Device != d.Device {
			h.t.Errorf("%s in the guest: device %s, recorded %s", name, seen.Device, d.Device)
		}
	}
	if len(r.Disks) != len(disks) {
		h.t.Errorf("the guest saw %d disks, want %d", len(r.Disks), len(disks))
	}
	if len(r.Writes) != 1 || !r.Writes[0].OK {
		h.t.Errorf("what the guest wrote to its data disk: got %+v, want one write that worked", r.Writes)
	}
}

// status is Run in a goroutine of its own: it fails without ending it.
func (h *host) status(want int, args ...string) {
	if r := h.Run(args...); r.Status != want {
		h.t.Errorf("while the guest runs: want exit status %d of %v", want, r)
	}
}

func (h *host) life(rootFormat string) {
	t := h.t
	out := filepath.Join(t.TempDir(), "out") // there only while it is looked at
	before := h.disks()
	if got := before["root"].Format; got != rootFormat {
		t.Fatalf("root disk: format %s, want %s", got, rootFormat)
	}
	content := fileSum(t, filepath.Join(h.base.Path, h.file))

	first := h.boot(func() {
		h.status(7, "disk", "export", "web1/root", out, "--format", "raw")
		h.status(7, "disk", "resize", "web1/root", "+1G")
		h.status(7, "instance", "delete", "web1", "--yes")
		h.status(7, "instance", "detach", "web1")
		h.status(0, "instance", "attach", "web1", "--as", "qemu")
	})
	h.sees(first)
	if first.Boots != 1 {
		t.Errorf("boots of a new root disk: got %d, want 1", first.Boots)
	}
	h.Must("instance", "detach", "web1")
	h.baseIsSafe(content, before["root"].Path)
	h.dataIsRaw(before["data0"], out)

	h.Must("disk", "resize", "web1/root", "+1G")
	second := h.boot(func() {
		h.status(7, "instance", "detach", "web1")
		h.status(0, "instance", "detach", "web1", "--force", "--yes")
		h.status(7, "disk", "export", "web1/root", out, "--format", "raw")
		h.status(7, "instance", "attach", "web1", "--as", "qemu")
	})
	h.sees(second)
	h.continues(first, second, before)
	h.baseIsSafe(content, before["root"].Path)
	h.dataIsRaw(before["data0"], out)
	h.AssertHealthy()
	h.AssertSettled()
	h.Must("instance", "delete", "web1", "--yes")
}

// once boots from storage whose volumes are no files: the guest reads what tarn
// wrote, and tarn what the guest did.
func (h *host) once() {
	out := filepath.Join(h.t.TempDir(), "out")
	before := h.disks()
	h.sees(h.boot(func() {
		h.status(7, "disk", "export", "web1/root", out, "--format", "raw")
		h.status(7, "instance", "delete", "web1", "--yes")
	}))
	h.Must("instance", "detach", "web1")
	h.dataIsRaw(before["data0"], out)
	h.AssertHealthy()
	h.AssertSettled()
	h.Must("instance", "delete", "web1", "--yes")
}

// continues fails unless the second boot found what the first one left, at the
// same places, and the root disk grown.
func (h *host) continues(first, second guest.Report, before map[string]api.Disk) {
	t := h.t
	t.Helper()
	if second.Boots != 2 {
		t.Errorf("boots of a root disk that booted before: got %d, want 2", second.Boots)
	}
	for _, now := range second.Disks {
		was, ok := first.Disk(now.Serial)
		if !ok || was.Device != now.Device {
			t.Errorf("second boot: disk %s is %s, was %s", now.Serial, now.Device, was.Device)
		}
	}
	for name, was := range before {
		now, _ := second.Disk(was.Serial)
		want := was.Size
		if name == "root" {
			want += grown
		}
		if now.Size != want {
			t.Errorf("second boot: %s has %d bytes, want %d", name, now.Size, want)
		}
	}
	ephemeral, _ := second.Disk(before["ephemeral0"].Serial)
	if ephemeral.Written != 2 {
		t.Errorf("second boot: the ephemeral disk was written to in %d boots, want 2", ephemeral.Written)
	}
	data, _ := second.Disk(before["data0"].Serial)
	head := sha256.Sum256(dataContent()[:64<<10])
	if want := hex.EncodeToString(head[:]); data.HeadSHA256 != want {
		t.Errorf("second boot: the data disk begins with %s, want what the guest wrote, %s", data.HeadSHA256, want)
	}
}

// dataContent is the data disk as the guest left it.
func dataContent() []byte {
	b := make([]byte, dataSize)
	copy(b, attackHeader())
	return b
}

// dataIsRaw fails unless the disk that begins with a qcow2 header is still the
// raw disk it was and exports as the bytes it holds.
func (h *host) dataIsRaw(was api.Disk, out string) {
	h.t.Helper()
	if now := h.disks()["data0"]; now.Format != "raw" || now.Size != was.Size || now.Backing != nil {
		h.t.Errorf("data disk with a qcow2 header in it: got format %s, %d bytes, backing %v; want raw, %d, none", now.Format, now.Size, now.Backing, was.Size)
	}
	h.Must("disk", "export", "web1/data0", out, "--format", "raw")
	got, err := os.ReadFile(out)
	os.Remove(out)
	if err != nil || !bytes.Equal(got, dataContent()) {
		h.t.Errorf("export of the data disk: %d bytes, %v; want the %d that the guest left", len(got), err, dataSize)
	}
}

// baseIsSafe fails unless the base is what it was and QEMU's user cannot write
// it, nor let itself write it, though it can write the disk.
func (h *host) baseIsSafe(content, root string) {
	h.t.Helper()
	base, root := filepath.Join(h.base.Path, h.file), filepath.Join(root, h.file)
	if got := fileSum(h.t, base); got != content {
		h.t.Errorf("the base changed: %s, was %s", got, content)
	}
	write := func(path string) (string, error) {
		cmd := exec.Command("sh", "-c", `: <>"$1"`, "sh", path)
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: h.user.Credential}
		said, err := cmd.CombinedOutput()
		return string(said), err
	}
	if said, err := write(root); err != nil {
		h.t.Errorf("%s opens its root disk for writing: %v %s", h.user.Owner, err, said)
	}
	if said, err := write(base); err == nil || !strings.Contains(said, "Permission denied") {
		h.t.Errorf("%s opens the base for writing: %v %s, want permission denied", h.user.Owner, err, said)
	}
	cmd := exec.Command("chmod", "u+w", base)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: h.user.Credential}
	if said, err := cmd.CombinedOutput(); err == nil {
		h.t.Errorf("%s changes the base's mode: want it refused, got %s", h.user.Owner, said)
	}
}

func fileSum(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}
