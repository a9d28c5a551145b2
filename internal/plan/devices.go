package plan

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"

	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/disk"
)

// Buses are the buses a disk may be on, the default first.
var Buses = []string{"virtio", "scsi", "sata"}

// single roles have at most one disk per instance and carry no index in their
// name.
func single(r disk.Role) bool {
	return r == disk.RoleRoot || r == disk.RoleSwap || r == disk.RoleConfig || r == disk.RoleRescue
}

// NameDisk returns the index and the name in its instance of a new disk of the
// given role beside the existing ones: the lowest free index. A second disk of
// a role that allows one is errs.Exists.
func NameDisk(role disk.Role, existing []disk.Disk) (index int, name string, err error) {
	taken := map[int]bool{}
	for _, d := range existing {
		if d.Role == role {
			taken[d.Index] = true
		}
	}
	if single(role) {
		if len(taken) > 0 {
			return 0, "", errs.New(errs.Exists, "disk.create", string(role), "the instance already has a %s disk", role)
		}
		return 0, string(role), nil
	}
	for taken[index] {
		index++
	}
	return index, string(role) + strconv.Itoa(index), nil
}

var targetForm = regexp.MustCompile(`^(vd|sd)[a-z]{1,3}$`)

// NameDevice returns the device name of a new disk on bus beside the existing
// ones: the first free letter. A wanted name is checked instead.
func NameDevice(bus, wanted string, existing []disk.Disk) (string, error) {
	prefix := "sd"
	if bus == "virtio" {
		prefix = "vd"
	}
	taken := map[string]string{}
	for _, d := range existing {
		taken[d.Device] = d.Name
	}
	if wanted != "" {
		switch {
		case !targetForm.MatchString(wanted) || wanted[:2] != prefix:
			return "", errs.New(errs.Invalid, "disk.attach", wanted, "%q is no device name of the bus %s", wanted, bus).WithHint("use %sa, %sb, ...", prefix, prefix)
		case taken[wanted] != "":
			return "", errs.New(errs.Exists, "disk.attach", wanted, "disk %s is already %s", taken[wanted], wanted)
		}
		return wanted, nil
	}
	for i := 0; ; i++ {
		if name := prefix + letters(i); taken[name] == "" {
			return name, nil
		}
	}
}

// letters counts a, b, ..., z, aa, ab, ...
func letters(i int) string {
	s := ""
	for i++; i > 0; i = (i - 1) / 26 {
		s = string(rune('a'+(i-1)%26)) + s
	}
	return s
}

// DeviceIndex counts device names: sda and vda are 0, sdb 1, sdaa 26.
func DeviceIndex(device string) int {
	n := 0
	for _, c := range []byte(device[min(2, len(device)):]) {
		n = n*26 + int(c-'a') + 1
	}
	return max(0, n-1)
}

// BootIndex returns the boot order of a new disk: an instance boots from its
// root first, then from its cdroms; other disks are no boot devices (0).
func BootIndex(role disk.Role, existing []disk.Disk) int {
	if role != disk.RoleRoot && role != disk.RoleCdrom {
		return 0
	}
	next := 1
	for _, d := range existing {
		next = max(next, d.BootIndex+1)
	}
	return next
}

// CheckChoice returns an error unless value is empty or one of choices.
func CheckChoice(what, value string, choices ...string) error {
	if value == "" || slices.Contains(choices, value) {
		return nil
	}
	return errs.New(errs.Invalid, what, value, "%q is not a %s", value, what).WithHint("use one of %v", fmt.Sprint(choices))
}
