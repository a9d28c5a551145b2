package engine

import (
	"encoding/hex"
	"os"
	"strings"

	"github.com/google/uuid"
	"github.com/zeebo/blake3"

	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/disk"
)

// Host is the machine the engine runs on, in its present boot.
type Host struct {
	ID     disk.HostID
	Name   string
	BootID string
}

// ThisHost reads who this machine is. The id is a keyed hash of
// /etc/machine-id in UUID form, so that it survives a lost database without
// giving the machine id away (machine-id(5) asks for that).
func ThisHost() (Host, error) {
	machine, err := os.ReadFile("/etc/machine-id")
	if err != nil || len(strings.TrimSpace(string(machine))) == 0 {
		return Host{}, errs.New(errs.Unavailable, "host", "/etc/machine-id", "the machine id cannot be read: %w", err).
			WithHint("run systemd-machine-id-setup, or write 32 hex digits to /etc/machine-id")
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return Host{}, errs.New(errs.Unavailable, "host", "boot_id", "the kernel's boot id cannot be read: %w", err)
	}
	name, err := os.Hostname()
	if err != nil {
		return Host{}, errs.New(errs.Unavailable, "host", "hostname", "the host name cannot be read: %w", err)
	}
	var id [16]byte
	blake3.DeriveKey("tarn host id v1", []byte(strings.TrimSpace(string(machine))), id[:])
	u, err := uuid.FromBytes(id[:])
	if err != nil {
		return Host{}, errs.New(errs.Internal, "host", hex.EncodeToString(id[:]), "no uuid: %w", err)
	}
	return Host{ID: disk.HostID(u.String()), Name: name, BootID: strings.TrimSpace(string(boot))}, nil
}
