package plan

import "testing"

func TestDeviceIndexUndoesLetters(t *testing.T) {
	for i := range 20000 {
		if name := "sd" + letters(i); DeviceIndex(name) != i {
			t.Fatalf("DeviceIndex(%q) = %d, want %d", name, DeviceIndex(name), i)
		}
	}
}
