package dirdrv

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/tarn-storage/tarn/internal/pool/driver"
)

// identity names the file system behind a pool and the pool's place in it. A
// file system without a UUID is named by what the kernel has, in the end by its
// device.
type identity struct{ domain, storage string }

// identify names the file system of d by its UUID, so that pools on one file
// system are seen to share its space.
func identify(d *dir) (identity, error) {
	var st unix.Stat_t
	var fs unix.Statfs_t
	var uuid string
	err := d.use(func(fd int) error {
		uuid = fsUUID(fd)
		return errors.Join(unix.Fstat(fd, &st), unix.Fstatfs(fd, &fs))
	})
	if err != nil {
		return identity{}, err
	}
	if uuid == "" {
		uuid = uuidByDevice(st.Dev)
	}
	if uuid == "" {
		uuid = fmt.Sprintf("%08x%08x", uint32(fs.Fsid.Val[0]), uint32(fs.Fsid.Val[1]))
		if fs.Fsid == (unix.Fsid{}) {
			uuid = fmt.Sprintf("dev-%d-%d", unix.Major(st.Dev), unix.Minor(st.Dev))
		}
	}
	domain := "fs:" + uuid
	return identity{domain, fmt.Sprintf("%s/ino:%d", domain, st.Ino)}, nil
}

// fsUUID asks the kernel: since Linux 6.9 for every file system, before that
// for btrfs, whose device numbers lead nowhere.
func fsUUID(fd int) string {
	const (
		getFSUUID   = 0x80111500 // FS_IOC_GETFSUUID
		btrfsFSInfo = 0x8400941f // BTRFS_IOC_FS_INFO
	)
	var generic struct {
		Len  uint8
		UUID [16]byte
	}
	if ioctl(fd, getFSUUID, unsafe.Pointer(&generic)) == nil && generic.Len == 16 {
		if uuid := formatUUID(generic.UUID); uuid != "" {
			return uuid
		}
	}
	var btrfs struct {
		MaxID, NumDevices uint64
		FSID              [16]byte
		_                 [1024 - 32]byte
	}
	if ioctl(fd, btrfsFSInfo, unsafe.Pointer(&btrfs)) == nil {
		return formatUUID(btrfs.FSID)
	}
	return ""
}

func ioctl(fd int, request uintptr, arg unsafe.Pointer) error {
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), request, uintptr(arg)); errno != 0 {
		return errno
	}
	return nil
}

func formatUUID(u [16]byte) string {
	if u == ([16]byte{}) {
		return ""
	}
	return fmt.Sprintf("%x-%x-%x-%x-%x", u[:4], u[4:6], u[6:8], u[8:10], u[10:])
}

// uuidByDevice finds the UUID that udev knows for a block device: in its
// database, which a service can read whose /dev is private, or by its links.
func uuidByDevice(dev uint64) string {
	data, _ := os.ReadFile(fmt.Sprintf("/run/udev/data/b%d:%d", unix.Major(dev), unix.Minor(dev)))
	if uuid := udevUUID(string(data)); uuid != "" {
		return uuid
	}
	links, _ := filepath.Glob("/dev/disk/by-uuid/*")
	for _, link := range links {
		var st unix.Stat_t
		if unix.Stat(link, &st) == nil && st.Rdev == dev {
			return strings.ToLower(filepath.Base(link))
		}
	}
	return ""
}

// udevUUID returns the name that an entry of udev's database gives to a file
// system's link, in lower case.
func udevUUID(entry string) string {
	for line := range strings.Lines(entry) {
		if uuid, ok := strings.CutPrefix(strings.TrimSpace(line), "E:ID_FS_UUID_ENC="); ok {
			return strings.ToLower(uuid)
		}
	}
	return ""
}

// Stat implements driver.Driver.
func (p *pool) Stat(ctx context.Context) (driver.Usage, error) {
	if err := ctx.Err(); err != nil {
		return driver.Usage{}, failed("pool.stat", p.path, err)
	}
	var fs unix.Statfs_t
	err := p.present()
	if err == nil {
		err = p.root.use(func(fd int) error { return unix.Fstatfs(fd, &fs) })
	}
	if err != nil {
		return driver.Usage{}, failed("pool.stat", p.path, err)
	}
	unit := fs.Frsize
	if unit == 0 {
		unit = fs.Bsize
	}
	return driver.Usage{
		Identity: p.ident.domain,
		Storage:  p.ident.storage,
		Capacity: int64(fs.Blocks) * unit,
		Free:     int64(fs.Bavail) * unit,
	}, nil
}

// Physical implements driver.Physical: the blocks of every file that is not
// foreign, shared extents once.
func (p *pool) Physical(ctx context.Context) (int64, error) {
	var own []place
	for r, err := range p.Sidecars(ctx) {
		if err != nil {
			return 0, err
		}
		own = append(own, place{p.root, r.Name}, place{p.root, r.Name + sidecarSuffix})
	}
	err := p.tmp.each(ctx, func(name string) bool { own = append(own, place{p.tmp, name}); return true })
	own = append(own, place{p.root, markerName}, place{p.root, tmpName})
	if err == nil && p.snaps != nil {
		err = p.snaps.each(ctx, func(name string) bool { own = append(own, place{p.snaps, name}); return true })
		own = append(own, place{p.root, snapsName})
	}
	var u union
	for _, at := range own {
		if err == nil {
			err = ctx.Err()
		}
		if err == nil {
			err = p.measure(at, &u)
		}
	}
	return u.sum(), failed("pool.physical", p.path, p.absent(err))
}

type place struct {
	in   *dir
	name string
}

// measure adds one file to u. Where nothing can be shared, or is, the file
// system's own count of blocks is best.
func (p *pool) measure(at place, u *union) error {
	st, err := at.in.stat(at.name)
	if err != nil {
		return ignoring(unix.ENOENT, err)
	}
	blocks := int64(st.Blocks) * 512
	if p.folders != nil && p.isVolume(st) && at.name != tmpName {
		u.alone += blocks
		return p.measureFolder(at, u)
	}
	if p.caps.Clone != driver.CloneReflink || !isRegular(st) {
		u.alone += blocks
		return nil
	}
	f, err := at.in.open(at.name, unix.O_RDONLY)
	if err != nil {
		return ignoring(unix.ENOENT, err)
	}
	defer f.Close()
	alone, shared, err := extents(f, u)
	switch {
	case errors.Is(err, unix.EOPNOTSUPP) || err == nil && !shared:
		u.alone += blocks
	case err == nil:
		u.alone += alone
	}
	return ignoring(unix.EOPNOTSUPP, err)
}

// extents adds f's shared extents to u and returns the bytes of the others.
func extents(f *os.File, u *union) (alone int64, shared bool, err error) {
	err = eachExtent(f, func(e fiemapExtent) bool {
		if e.Flags&fiemapShared != 0 && e.Flags&(fiemapUnknown|fiemapDelalloc) == 0 {
			u.add(int64(e.Physical), int64(e.Physical+e.Length))
			shared = true
		} else {
			alone += int64(e.Length)
		}
		return true
	})
	return alone, shared, err
}

// union sums physical ranges, overlapping ones once. Memory is bounded by the
// ranges that differ, not by the files that share them.
type union struct {
	alone  int64
	ranges [][2]int64
	limit  int // ranges to hold before merging
}

func (u *union) add(from, to int64) {
	u.ranges = append(u.ranges, [2]int64{from, to})
	if len(u.ranges) >= max(u.limit, 1<<18) {
		u.merge()
		u.limit = 2 * len(u.ranges)
	}
}

func (u *union) merge() {
	slices.SortFunc(u.ranges, func(a, b [2]int64) int { return int(min(max(a[0]-b[0], -1), 1)) })
	merged := u.ranges[:0]
	for _, r := range u.ranges {
		if n := len(merged); n > 0 && r[0] <= merged[n-1][1] {
			merged[n-1][1] = max(merged[n-1][1], r[1])
			continue
		}
		merged = append(merged, r)
	}
	u.ranges = merged
}

func (u *union) sum() int64 {
	u.merge()
	total := u.alone
	for _, r := range u.ranges {
		total += r[1] - r[0]
	}
	return total
}

const ballastSize = 16 << 20

// ReleaseBallast implements driver.Ballast.
func (p *pool) ReleaseBallast(ctx context.Context) error {
	err := ctx.Err()
	if err == nil {
		err = p.tmp.remove(ballastName)
	}
	return failed("pool.release_ballast", p.path, err)
}

// RestoreBallast implements driver.Ballast: 16 MiB, or a hundredth of a small
// file system, if twice that is free.
func (p *pool) RestoreBallast(ctx context.Context) error {
	const op = "pool.restore_ballast"
	u, err := p.Stat(ctx)
	if err != nil {
		return err
	}
	size := min(ballastSize, u.Capacity/100) / sizeUnit * sizeUnit
	st, err := p.tmp.stat(ballastName)
	switch {
	case err != nil && !isNotExist(err):
		return failed(op, p.path, err)
	case err == nil && int64(st.Size) >= size || u.Free < 2*size:
		return nil
	}
	err = p.takeBallast(size, isNotExist(err))
	for _, e := range []error{unix.ENOSPC, unix.EDQUOT, unix.EOPNOTSUPP} { // no room, or no such promise here
		err = ignoring(e, err)
	}
	return failed(op, p.path, err)
}

// takeBallast makes the ballast, or completes what a crash left of it.
func (p *pool) takeBallast(size int64, fresh bool) (err error) {
	var f *os.File
	if fresh {
		f, err = p.tmp.create(ballastName)
	} else {
		f, err = p.tmp.open(ballastName, unix.O_RDWR)
	}
	if err != nil {
		return err
	}
	defer f.Close()
	if err := allocate(f, size); err != nil {
		_ = p.tmp.remove(ballastName)
		return err
	}
	return nil
}
