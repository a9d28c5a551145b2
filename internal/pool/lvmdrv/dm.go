package lvmdrv

import (
	"encoding/binary"
	"fmt"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/tarn-storage/tarn/errs"
)

// The kernel's own words on a mapped device (Linux, include/uapi/linux/dm-ioctl.h):
// they take microseconds, where starting LVM takes tens of milliseconds.
const (
	dmListDevices  = 0xc138fd02 // DM_LIST_DEVICES
	dmDeviceStatus = 0xc138fd07 // DM_DEV_STATUS
	dmTableStatus  = 0xc138fd0c // DM_TABLE_STATUS
	dmNoFlush      = 1 << 11    // DM_NOFLUSH_FLAG
	dmTable        = 1 << 4     // DM_STATUS_TABLE_FLAG
	dmTruncated    = 1 << 8     // DM_BUFFER_FULL_FLAG
)

// dmHeader is struct dm_ioctl.
type dmHeader struct {
	Version                          [3]uint32
	DataSize, DataStart, TargetCount uint32
	OpenCount                        int32
	Flags, EventNr, _                uint32
	Dev                              uint64
	Name                             [128]byte
	UUID                             [129]byte
	_                                [7]byte
}

// mappedDevice is what device-mapper says of one device.
type mappedDevice struct {
	dev   uint64
	uuid  string // LVM's: of the group and of the logical volume
	opens int
}

// mapped looks at the device name; unix.ENXIO if there is none.
func mapped(name string) (mappedDevice, error) {
	h, _, err := dmCall(dmDeviceStatus, name, 0)
	if err != nil {
		return mappedDevice{}, err
	}
	return mappedDevice{dev: h.Dev, uuid: cString(h.UUID[:]), opens: int(h.OpenCount)}, nil
}

// target returns the kind of the first target of the device name and its
// status, or with table what it was made with.
func target(name string, table bool) (kind string, words []string, err error) {
	flags := uint32(dmNoFlush)
	if table {
		flags |= dmTable
	}
	h, data, err := dmCall(dmTableStatus, name, flags)
	if err != nil {
		return "", nil, err
	}
	if h.TargetCount == 0 || h.Flags&dmTruncated != 0 || len(data) < 40 {
		return "", nil, errs.New(errs.Unavailable, "lvm.status", name, "the device %s has no table", name)
	}
	return cString(data[24:40]), strings.Fields(cString(data[40:])), nil // struct dm_target_spec
}

func dmCall(request uintptr, name string, flags uint32) (*dmHeader, []byte, error) {
	control, err := os.OpenFile("/dev/mapper/control", os.O_RDWR, 0)
	if err != nil {
		return nil, nil, err
	}
	defer control.Close()
	room := 4 << 10
	if request == dmListDevices {
		room = 1 << 20
	}
	buf := make([]uint64, room/8)
	h := (*dmHeader)(unsafe.Pointer(&buf[0]))
	size := uint32(unsafe.Sizeof(*h))
	*h = dmHeader{Version: [3]uint32{4, 0, 0}, DataSize: uint32(len(buf) * 8), DataStart: size, Flags: flags}
	if copy(h.Name[:len(h.Name)-1], name) != len(name) {
		return nil, nil, unix.ENXIO
	}
	for {
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, control.Fd(), request, uintptr(unsafe.Pointer(h)))
		switch errno {
		case 0:
			data := unsafe.Slice((*byte)(unsafe.Pointer(&buf[0])), len(buf)*8)
			return h, data[min(h.DataStart, uint32(len(data))):], nil
		case unix.EINTR:
		default:
			return nil, nil, errno
		}
	}
}

func cString(b []byte) string {
	for i, c := range b {
		if c == 0 {
			return string(b[:i])
		}
	}
	return string(b)
}

// dmName is what LVM calls the device of a logical volume: each dash of a name
// is doubled (LVM2, libdm: dm_build_dm_name).
func dmName(vg, name string) string {
	return strings.ReplaceAll(vg, "-", "--") + "-" + strings.ReplaceAll(name, "-", "--")
}

// node is where the device of a logical volume is.
func (s *source) node(name string) string { return "/dev/mapper/" + dmName(s.vg, name) }

// look returns the device of an active logical volume and its id. A device that
// is another group's is not there.
func (s *source) look(name string) (m mappedDevice, id string, err error) {
	if m, err = mapped(dmName(s.vg, name)); err != nil {
		return m, "", err
	}
	prefix := "LVM-" + strings.ReplaceAll(s.group.uuid, "-", "")
	id, ours := strings.CutPrefix(m.uuid, prefix)
	if !ours || len(id) != 32 {
		return m, "", unix.ENXIO
	}
	return m, fmt.Sprintf("%s-%s-%s-%s-%s-%s-%s", id[:6], id[6:10], id[10:14], id[14:18], id[18:22], id[22:26], id[26:]), nil
}

// active returns the logical volume name if it is there and active; tags are
// not told. What it does not find LVM may know.
func (s *source) active(name string) (v lv, there bool) {
	m, id, err := s.look(name)
	if err != nil {
		return v, false
	}
	size, err := deviceSize(m.dev)
	return lv{name: name, uuid: id, size: size, active: true}, err == nil
}

// activeNames returns the names of the group's active logical volumes that
// begin with prefix.
func (s *source) activeNames(prefix string) ([]string, error) {
	h, data, err := dmCall(dmListDevices, "", 0)
	if err != nil {
		return nil, err
	}
	if h.Flags&dmTruncated != 0 {
		return nil, errs.New(errs.Unavailable, "lvm.names", s.vg, "the kernel has more devices than it can list")
	}
	var found []string
	for len(data) > 12 { // struct dm_name_list
		name, ours := strings.CutPrefix(cString(data[12:]), dmName(s.vg, ""))
		name = strings.ReplaceAll(name, "--", "\x00")
		if ours && !strings.Contains(name, "-") { // else it is a layer below one
			if name = strings.ReplaceAll(name, "\x00", "-"); strings.HasPrefix(name, prefix) {
				found = append(found, name)
			}
		}
		next := binary.NativeEndian.Uint32(data[8:])
		if next == 0 || int(next) > len(data) {
			break
		}
		data = data[next:]
	}
	return found, nil
}

// deviceSize returns the bytes of a block device.
func deviceSize(dev uint64) (int64, error) {
	data, err := os.ReadFile(fmt.Sprintf("/sys/dev/block/%d:%d/size", unix.Major(dev), unix.Minor(dev)))
	if err != nil {
		return 0, err
	}
	n, err := strconv.ParseInt(strings.TrimSpace(string(data)), 10, 64)
	return n * 512, err
}

// readOnly reports whether a block device is.
func readOnly(dev uint64) bool {
	data, err := os.ReadFile(fmt.Sprintf("/sys/dev/block/%d:%d/ro", unix.Major(dev), unix.Minor(dev)))
	return err == nil && strings.TrimSpace(string(data)) == "1"
}

// allocated returns the physical bytes of an active logical volume of size
// bytes: those of a thin one that are mapped, shared ones counted in full.
func (s *source) allocated(name string, size int64) int64 {
	kind, words, err := target(dmName(s.vg, name), false)
	if err != nil || kind != "thin" || len(words) == 0 {
		return size
	}
	sectors, err := strconv.ParseInt(words[0], 10, 64) // Documentation/admin-guide/device-mapper/thin-provisioning.rst
	if err != nil {
		return size
	}
	return sectors * 512
}

// mappedEnd returns where the last chunk that the active thin volume name has
// mapped ends, which after a shrink may be beyond the volume. What cannot be told
// is mapped.
func (s *source) mappedEnd(name string) int64 {
	kind, words, err := target(dmName(s.vg, name), false)
	if err != nil || kind != "thin" || len(words) < 2 {
		return math.MaxInt64
	}
	if words[1] == "-" {
		return 0
	}
	last, err := strconv.ParseInt(words[1], 10, 64) // a sector
	if err != nil {
		return math.MaxInt64
	}
	return (last + 1) * 512
}

// thinUsage is the state of a thin pool.
type thinUsage struct {
	chunk               int64
	dataUsed, dataTotal int64 // bytes
	metaUsed, metaTotal int64 // blocks of its metadata
	readOnly, outOfData bool
	needsCheck          bool // its metadata, by a person
}

// thinUsage asks the kernel for the state of the thin pool.
func (s *source) thinUsage() (u thinUsage, err error) {
	const op = "lvm.thin_pool"
	name := dmName(s.vg, s.thinPool) // of the pool itself, until it has a volume
	is := "LVM-" + strings.ReplaceAll(s.group.uuid+s.poolUUID, "-", "") + "-tpool"
	m, err := mapped(name)
	if err != nil || m.uuid != is {
		name += "-tpool"
		m, err = mapped(name)
	}
	if err == nil && m.uuid != is {
		err = unix.ENXIO
	}
	if err != nil {
		return u, errs.New(errs.Unavailable, op, s.String(), "the thin pool %s is not active: %w", s, err).WithHint("lvchange -ay %s", s)
	}
	kind, table, err := target(name, true)
	if err != nil {
		return u, err
	}
	_, status, err := target(name, false)
	if err != nil {
		return u, err
	}
	bad := func() (thinUsage, error) {
		return thinUsage{}, errs.New(errs.Unavailable, op, s.String(), "the kernel says %s of the thin pool: %q", kind, status).
			WithHint("dmsetup status; lvconvert --repair %s", s)
	}
	if kind != "thin-pool" || len(table) < 3 || len(status) < 5 {
		return bad()
	}
	sectors, err := strconv.ParseInt(table[2], 10, 64)
	if err != nil || !fraction(status[1], &u.metaUsed, &u.metaTotal) || !fraction(status[2], &u.dataUsed, &u.dataTotal) {
		return bad()
	}
	u.chunk = sectors * 512
	u.dataUsed, u.dataTotal = u.dataUsed*u.chunk, u.dataTotal*u.chunk
	u.readOnly, u.outOfData, u.needsCheck = status[4] == "ro", status[4] == "out_of_data_space", slices.Contains(status[5:], "needs_check")
	return u, nil
}

func fraction(s string, of, total *int64) bool {
	a, b, ok := strings.Cut(s, "/")
	n, err1 := strconv.ParseInt(a, 10, 64)
	m, err2 := strconv.ParseInt(b, 10, 64)
	*of, *total = n, m
	return ok && err1 == nil && err2 == nil && m > 0
}
