package engine

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tarn-storage/tarn/diskfmt"
	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/disk"
	"github.com/tarn-storage/tarn/internal/pool/driver"
	"github.com/tarn-storage/tarn/test/oracle"
)

// TestLayersOfItsOwn has QEMU read a disk through three Parallels images, as the
// arguments say, from a directory whose name has a comma.
func TestLayersOfItsOwn(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a,b")
	oracle.Run(t, "coreutils", "mkdir", dir)
	var chain []layer
	for i := range 3 {
		path := filepath.Join(dir, fmt.Sprint("root.hds.", i))
		oracle.Run(t, "qemu-utils", "qemu-img", "create", "-q", "-f", "parallels", path, "16M")
		oracle.Run(t, "qemu-utils", "qemu-io", "-f", "parallels", "-c", fmt.Sprintf("write -P %d %dM 1M", i+1, i), path)
		chain = append(chain, layer{diskfmt.Ploop, driver.Attachment{Type: "file", Path: path, Format: diskfmt.Ploop}})
	}
	d := disk.Disk{Name: "root", Serial: "abcdefghij0123456789", Bus: "virtio", Device: "vda", Cache: "writeback", Discard: "unmap"}
	for n := 1; n <= len(chain); n++ {
		var q qemuArgs
		q.disk(d, chain[:n])
		script := `{"execute":"qmp_capabilities"}`
		for i := range 3 {
			pattern := 0
			if i < n {
				pattern = i + 1
			}
			b, _ := json.Marshal(fmt.Sprintf(`qemu-io d-%s "read -P %d %dM 1M"`, d.Serial, pattern, i))
			script += fmt.Sprintf(`{"execute":"human-monitor-command","arguments":{"command-line":%s}}`, b)
		}
		args := append([]string{"-c", `echo "$0" | qemu-system-x86_64 -S -display none -nodefaults -accel tcg -qmp stdio "$@"`, script + `{"execute":"quit"}`}, q.args()...)
		out := oracle.Run(t, "qemu-system-x86", "sh", args...)
		if strings.Count(out, "read 1048576/1048576") != 3 || strings.Contains(out, "failed") {
			t.Errorf("QEMU with %d layers, %q:\n%s", n, q.args(), out)
		}
	}
	if _, err := libvirtDisk(d, chain[:1]); err != nil {
		t.Errorf("libvirt with one layer: %v", err)
	}
	if x, err := libvirtDisk(d, chain); errs.KindOf(err) != errs.Unsupported {
		t.Errorf("libvirt with three layers: %s, %v; want unsupported", x, err)
	}
}
