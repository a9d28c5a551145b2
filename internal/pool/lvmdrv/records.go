package lvmdrv

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/zeebo/blake3"
	"golang.org/x/sys/unix"

	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/blkio"
	"github.com/tarn-storage/tarn/internal/disk"
	"github.com/tarn-storage/tarn/internal/pool/driver"
)

// The records volume is an array of slots of two copies each. A copy is
//
//	magic    16 bytes, "tarn-records 1\n" and a zero
//	length   uint32, little endian, of the body
//	checksum 32 bytes, BLAKE3 of the body
//	body     JSON, a record
//
// and zeroes up to copySize. A slot holds the valid copy with the greater
// generation. Writing takes the other copy and syncs: after a crash at any time
// one of the two is whole. Slot 0 is the pool's marker.
const (
	magic    = "tarn-records 1\n\x00"
	headSize = 16 + 4 + 32
	copySize = 24 << 10 // a record of driver.RecordSize in base64, and its names
)

// record is a sidecar and what it belongs to.
type record struct {
	Generation int64         `json:"generation"`
	Free       bool          `json:"free,omitempty"` // nothing is in the slot any more
	Name       string        `json:"name,omitempty"`
	ID         disk.VolumeID `json:"id,omitempty"`
	Object     string        `json:"object,omitempty"` // the logical volume's own id
	Data       []byte        `json:"data,omitempty"`
}

// slot is one slot as it was read: its record, if it ever had one, and which
// copy holds that.
type slot struct {
	record
	copy int
	used bool // it holds a valid copy
}

// records is the open records volume of one pool. Who holds the claim is the
// only one to change it, so what was loaded stays true.
type records struct {
	f *os.File

	mu    sync.Mutex
	slots []slot
	last  int64 // the greatest generation given away
}

// openRecords opens the records volume at path and loads it.
func openRecords(path string) (*records, error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	r := &records{f: f}
	if err := r.load(); err != nil {
		f.Close()
		return nil, err
	}
	return r, nil
}

// close drops the claim and closes the volume. Without the first the claim
// would outlive it for as long as a process that is being started still has its
// descriptor.
func (r *records) close() error {
	_ = unix.FcntlFlock(r.f.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_UNLCK, Len: 1}) // there may be none
	return r.f.Close()
}

// claim makes this opening the only one that serves the pool, on this host. The
// kernel drops the lock with the process.
func (r *records) claim(op, subject string) error {
	l := unix.Flock_t{Type: unix.F_WRLCK, Whence: io.SeekStart, Len: 1}
	err := unix.FcntlFlock(r.f.Fd(), unix.F_OFD_SETLK, &l)
	if err != unix.EAGAIN && err != unix.EACCES {
		return err
	}
	return errs.New(errs.Busy, op, subject, "%s serves the pool in %s", holderOf(r.f.Name()), subject).
		WithHint("one tarnd serves a pool: stop that one, or have it give the pool up with \"tarn pool stop\"")
}

// load reads every slot.
func (r *records) load() error {
	size, err := r.f.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if size < 4*copySize {
		return errs.New(errs.Corrupt, "lvm.records", r.f.Name(), "the records volume has %d bytes only", size)
	}
	r.slots = make([]slot, size/(2*copySize))
	buf := make([]byte, 2*copySize)
	for i := range r.slots {
		if _, err := r.f.ReadAt(buf, int64(i)*2*copySize); err != nil {
			return err
		}
		for c := range 2 {
			rec, ok, err := decode(buf[c*copySize : (c+1)*copySize])
			if err != nil {
				return err
			}
			if s := &r.slots[i]; ok && (!s.used || rec.Generation > s.Generation) {
				*s = slot{record: rec, copy: c, used: true}
				r.last = max(r.last, rec.Generation)
			}
		}
	}
	return nil
}

// decode returns the record in a copy; ok is false where none is whole.
func decode(b []byte) (rec record, ok bool, err error) {
	if len(b) < headSize {
		return rec, false, nil
	}
	n := int(binary.LittleEndian.Uint32(b[16:]))
	if n > len(b)-headSize || !bytes.HasPrefix(b, []byte("tarn-records ")) {
		return rec, false, nil
	}
	body := b[headSize : headSize+n]
	if sum := blake3.Sum256(body); !bytes.Equal(sum[:], b[20:headSize]) {
		return rec, false, nil
	}
	if string(b[:16]) != magic {
		return rec, false, errs.New(errs.Version, "lvm.records", "", "the records are written as %q; this build knows %q only", strings.TrimSpace(string(b[:16])), strings.TrimSpace(magic[:15])).
			WithHint("use the tarn that wrote them, or a newer one")
	}
	dec := json.NewDecoder(bytes.NewReader(body))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&rec); err != nil {
		return rec, false, errs.New(errs.Corrupt, "lvm.records", "", "a record with a right checksum does not parse: %w", err)
	}
	return rec, true, nil
}

func encode(rec record) ([]byte, error) {
	body, err := json.Marshal(rec)
	if err != nil {
		return nil, err
	}
	if len(body) > copySize-headSize || len(rec.Data) > driver.RecordSize {
		return nil, errs.New(errs.Invalid, "lvm.records", rec.Name, "%d bytes, at most %d are a record", len(rec.Data), driver.RecordSize)
	}
	b := make([]byte, copySize)
	copy(b, magic)
	binary.LittleEndian.PutUint32(b[16:], uint32(len(body)))
	sum := blake3.Sum256(body)
	copy(b[20:], sum[:])
	copy(b[headSize:], body)
	return b, nil
}

// write puts rec into slot i, durably; r.mu is held. It goes through an opening
// of its own: a sync that failed must not be hidden by one that is repeated on
// the same, nor end the pool's work.
func (r *records) write(i int, rec record) error {
	r.last++
	rec.Generation = r.last
	b, err := encode(rec)
	if err != nil {
		return err
	}
	s := &r.slots[i]
	to := 0
	if s.used {
		to = 1 - s.copy
	}
	fd, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", r.f.Fd()), unix.O_RDWR|unix.O_CLOEXEC, 0) // wherever it is by now
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), r.f.Name())
	d, err := blkio.NewFile(f)
	if err != nil {
		f.Close()
		return err
	}
	defer d.Close()
	if _, err := d.WriteAt(b, int64(2*i+to)*copySize); err != nil {
		return err
	}
	if err := d.Sync(); err != nil {
		return err
	}
	*s = slot{record: rec, copy: to, used: true}
	return nil
}

// next returns a generation that nothing has yet.
func (r *records) next() int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.last++
	return r.last
}

// volumes is how many volumes the slots are for.
func (r *records) volumes() int { return len(r.slots) - 1 }

// free returns how many slots nothing is in.
func (r *records) free() (n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i := 1; i < len(r.slots); i++ {
		if !r.slots[i].used || r.slots[i].Free {
			n++
		}
	}
	return n
}

// index returns the slot of the volume name; r.mu is held.
func (r *records) index(name string) (int, bool) {
	for i := 1; i < len(r.slots); i++ {
		if s := &r.slots[i]; s.used && !s.Free && s.Name == name {
			return i, true
		}
	}
	return 0, false
}

// get returns the record of the volume name.
func (r *records) get(name string) (record, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	i, ok := r.index(name)
	return r.slots[i].record, ok
}

// has reports whether the record of name is that of the logical volume object.
func (r *records) has(name, object string) bool {
	rec, ok := r.get(name)
	return ok && rec.Object == object
}

// all returns every volume's record.
func (r *records) all() (all []record) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i := 1; i < len(r.slots); i++ {
		if s := &r.slots[i]; s.used && !s.Free {
			all = append(all, s.record)
		}
	}
	return all
}

// put stores the record of the volume rec.Name in place of the one it has.
func (r *records) put(rec record) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	i, ok := r.index(rec.Name)
	for n := 1; n < len(r.slots) && !ok; n++ {
		if s := &r.slots[n]; !s.used || s.Free {
			i, ok = n, true
		}
	}
	if !ok {
		return errs.New(errs.NoSpace, "lvm.records", rec.Name, "the pool has no room for more than %d volumes", r.volumes())
	}
	return r.write(i, rec)
}

// rename gives the record of from to to.
func (r *records) rename(from, to string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	i, ok := r.index(from)
	if !ok {
		return nil
	}
	rec := r.slots[i].record
	rec.Name = to
	return r.write(i, rec)
}

// remove frees the slot of the volume name.
func (r *records) remove(name string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	i, ok := r.index(name)
	if !ok {
		return nil
	}
	return r.write(i, record{Free: true})
}

// marker returns the pool's marker.
func (r *records) marker() ([]byte, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.slots) == 0 || !r.slots[0].used || r.slots[0].Free {
		return nil, errs.New(errs.NotFound, "pool.marker", "", "there is no marker")
	}
	return bytes.Clone(r.slots[0].Data), nil
}

func (r *records) putMarker(data []byte) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.write(0, record{Data: data})
}

// holderOf names a process other than this one that has the device at path open.
func holderOf(path string) string {
	info, err := os.Stat(path)
	links, _ := filepath.Glob("/proc/[0-9]*/fd/*")
	self := fmt.Sprintf("/proc/%d/", os.Getpid())
	for _, link := range links {
		if err != nil || strings.HasPrefix(link, self) {
			continue
		}
		if other, err := os.Stat(link); err == nil && os.SameFile(info, other) {
			pid := strings.Split(link, "/")[2]
			name, _ := os.ReadFile("/proc/" + pid + "/comm")
			return fmt.Sprintf("%s (process %s)", strings.TrimSpace(string(name)), pid)
		}
	}
	return "another process, or this one,"
}
