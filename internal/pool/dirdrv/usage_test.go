package dirdrv

import "testing"

// TestUdevUUID reads an entry of udev's database as /run/udev/data has it.
func TestUdevUUID(t *testing.T) {
	const entry = "S:disk/by-uuid/0D3A-77F1\nI:1234\nE:ID_FS_UUID=0D3A-77F1\nE:ID_FS_UUID_ENC=0D3A-77F1\nE:ID_FS_TYPE=vfat\nG:systemd\n"
	for entry, want := range map[string]string{entry: "0d3a-77f1", "E:ID_FS_TYPE=swap\n": "", "": ""} {
		if got := udevUUID(entry); got != want {
			t.Errorf("udevUUID(%q) = %q, want %q", entry, got, want)
		}
	}
}
