package tarntest

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tarn-storage/tarn/api"
)

const (
	mib        = 1 << 20
	clients    = 3
	ownDisks   = 4 // of an instance, at most
	ownObjects = 2 // instances and images of a client, at most

	moment = 40 * time.Millisecond // about what a call takes
)

// Load is several clients that work on one pool at the same time, and the
// memory of what the daemon has acknowledged to each. It outlives the daemon's
// processes: Run, cut, Recovered, and again.
type Load struct {
	Acknowledged atomic.Int64 // calls, in all rounds

	t       testing.TB
	d       *Daemon
	pool    LoadPool
	sources []source
	clients []*loader
	cut     atomic.Bool
	acks    chan struct{}
}

// LoadPool says what a load may ask of its pool. The zero value is a directory.
type LoadPool struct {
	Raw bool // it holds raw disks alone

	// Write writes into a raw disk as a guest does, and syncs; nil: the disk is a file.
	Write func(v api.Volume, at int64, data []byte) error
}

// source is a file to import.
type source struct {
	path    string
	content []byte
}

// loader is one client. Only it works on its instances and images.
type loader struct {
	l         *Load
	n, made   int
	rng       *rand.Rand
	instances map[string]map[string]*loadDisk
	images    map[string]*source
	failed    string

	// pending is the call that was cut off: what it did is not known until
	// Recovered has looked.
	pending pending
}

// loadDisk is what a disk must be.
type loadDisk struct {
	size     int64
	content  []byte // zeroes follow
	format   string
	attached bool
	unsure   bool // a guest's write was cut off
}

// pending names what a call without an answer may have changed.
type pending struct {
	what  string // of the operation; "" where the last call was answered
	name  string // of the instance or image
	disk  string
	size  int64
	disks map[string]*loadDisk // of an instance that may be there
	image *source
}

// NewLoad returns a load on d's pool "main", which must be there. The same seed
// has every client ask the same, as far as their answers are the same.
func NewLoad(t testing.TB, d *Daemon, seed uint64, p LoadPool) *Load {
	t.Helper()
	if p.Write == nil {
		p.Write = writeSynced
	}
	l := &Load{t: t, d: d, pool: p}
	dir := t.TempDir()
	for i := range 3 {
		s := source{path: filepath.Join(dir, fmt.Sprint("image", i)), content: make([]byte, mib)}
		copy(s.content[i*4096:], Pattern(seed+uint64(i), 200_000))
		if err := os.WriteFile(s.path, s.content, 0o600); err != nil {
			t.Fatal(err)
		}
		l.sources = append(l.sources, s)
	}
	for n := range clients {
		l.clients = append(l.clients, &loader{l: l, n: n, rng: rand.New(rand.NewPCG(seed, uint64(n))),
			instances: map[string]map[string]*loadDisk{}, images: map[string]*source{}})
	}
	return l
}

// Run has all clients work. When they have got after acknowledgements, and at
// some random moment of the calls that follow, it calls cut, and returns when
// all have noticed. What fails before that is a failure of t.
func (l *Load) Run(after int, cut func()) {
	l.t.Helper()
	l.cut.Store(false)
	l.acks = make(chan struct{}, 1)
	done := make(chan struct{})
	var work sync.WaitGroup
	for _, c := range l.clients {
		work.Go(func() {
			for !l.cut.Load() && c.failed == "" && c.pending.what == "" {
				c.step()
			}
		})
	}
	go func() {
		work.Wait()
		close(done)
	}()
	for range after {
		select {
		case <-l.acks:
		case <-done:
		}
	}
	<-time.After(rand.N(moment)) // nothing is waited for: the moment is what is random
	l.cut.Store(true)
	cut()
	for ended := false; !ended; {
		select {
		case <-l.acks:
		case <-done:
			ended = true
		}
	}
	for _, c := range l.clients {
		if c.failed != "" {
			l.t.Fatalf("client %d: %s\ntarnd warned:\n%s", c.n, c.failed, l.d.Warnings())
		}
	}
}

// do makes one call. It reports whether that was acknowledged; after a cut one
// that was not leaves p behind.
func (c *loader) do(p pending, args ...string) (Result, bool) {
	r := c.l.d.Run(args...)
	switch {
	case r.Status == 0:
		c.l.acks <- struct{}{}
		c.l.Acknowledged.Add(1)
		return r, true
	case !c.l.cut.Load():
		c.failed = r.String()
	default:
		c.pending = p
	}
	return r, false
}

// step is one random piece of work.
func (c *loader) step() {
	instance, disk := c.pick()
	switch roll := c.rng.IntN(10); {
	case len(c.images) == 0, roll == 0 && len(c.images) < ownObjects:
		c.importImage()
	case roll == 0:
		c.deleteImage()
	case instance == "", roll == 1 && len(c.instances) < ownObjects:
		c.createInstance()
	case roll == 1:
		c.deleteInstance(instance)
	case roll <= 3 && len(c.instances[instance]) < ownDisks:
		c.createDisk(instance)
	case roll <= 4 && strings.HasPrefix(disk, "data"):
		c.deleteDisk(instance, disk)
	case roll <= 6:
		c.resize(instance, disk)
	default:
		c.guest(instance, disk)
	}
}

func sortedKeys[V any](m map[string]V) []string {
	var keys []string
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// pick chooses a disk.
func (c *loader) pick() (instance, disk string) {
	if len(c.instances) == 0 {
		return "", ""
	}
	names := sortedKeys(c.instances)
	instance = names[c.rng.IntN(len(names))]
	disks := sortedKeys(c.instances[instance])
	return instance, disks[c.rng.IntN(len(disks))]
}

func (c *loader) name(what string) string {
	c.made++
	return fmt.Sprintf("%s-%d-%d", what, c.n, c.made)
}

func (c *loader) format() string {
	if format := []string{"raw", "qcow2"}[c.rng.IntN(2)]; !c.l.pool.Raw {
		return format
	}
	return "raw"
}

func (c *loader) importImage() {
	s := &c.l.sources[c.rng.IntN(len(c.l.sources))]
	name := c.name("image")
	if _, ok := c.do(pending{what: "import", name: name, image: s}, "image", "import", name, s.path, "--format", "raw", "--pool", "main"); ok {
		c.images[name] = s
	}
}

func (c *loader) deleteImage() {
	names := sortedKeys(c.images)
	name := names[c.rng.IntN(len(names))]
	if _, ok := c.do(pending{what: "delete image", name: name}, "image", "delete", name, "--yes"); ok {
		delete(c.images, name)
	}
}

func (c *loader) createInstance() {
	images := sortedKeys(c.images)
	image := images[c.rng.IntN(len(images))]
	name := c.name("vm")
	format := c.format()
	disks := map[string]*loadDisk{
		"root":  {size: 2 * mib, content: c.images[image].content, format: format},
		"data0": {size: mib, format: "raw"},
	}
	if _, ok := c.do(pending{what: "create", name: name, disks: disks}, "instance", "create", name, "--pool", "main",
		"--root", image+":2M,disk-format="+format, "--data", "1M,disk-format=raw"); ok {
		c.instances[name] = disks
	}
}

func (c *loader) deleteInstance(name string) {
	if !c.detachAll(name) {
		return
	}
	if _, ok := c.do(pending{what: "delete instance", name: name}, "instance", "delete", name, "--yes"); ok {
		delete(c.instances, name)
	}
}

func (c *loader) createDisk(instance string) {
	size := int64(1+c.rng.IntN(3)) * mib
	format := c.format()
	name := ""
	for i := 0; name == "" || c.instances[instance][name] != nil; i++ {
		name = fmt.Sprint("data", i)
	}
	r, ok := c.do(pending{what: "create disk", name: instance, size: size, disk: format},
		"disk", "create", instance, "--data", fmt.Sprintf("%d,pool=main,disk-format=%s", size, format), "-o", "json")
	if !ok {
		return
	}
	made := field(r, "name")
	if c.instances[instance][made] != nil || !strings.HasPrefix(made, "data") {
		c.failed = fmt.Sprintf("the new disk of %s is called %q: %v", instance, made, r)
		return
	}
	c.instances[instance][made] = &loadDisk{size: size, format: format}
}

func (c *loader) deleteDisk(instance, disk string) {
	if !c.detachAll(instance) {
		return
	}
	if _, ok := c.do(pending{what: "delete disk", name: instance, disk: disk}, "disk", "delete", instance+"/"+disk, "--yes"); ok {
		delete(c.instances[instance], disk)
	}
}

func (c *loader) resize(instance, disk string) {
	d := c.instances[instance][disk]
	if d.size >= 8*mib || !c.detachAll(instance) {
		return
	}
	if _, ok := c.do(pending{what: "resize", name: instance, disk: disk, size: d.size + mib}, "disk", "resize", instance+"/"+disk, "+1M"); ok {
		d.size += mib
	}
}

// detachAll detaches the disks of an instance.
func (c *loader) detachAll(instance string) bool {
	for _, name := range sortedKeys(c.instances[instance]) {
		d := c.instances[instance][name]
		if !d.attached {
			continue
		}
		if _, ok := c.do(pending{what: "detach", name: instance, disk: name}, "disk", "detach", instance+"/"+name); !ok {
			return false
		}
		d.attached = false
	}
	return true
}

// guest attaches a disk and, if it is raw, writes and syncs as a guest does.
func (c *loader) guest(instance, disk string) {
	d := c.instances[instance][disk]
	if _, ok := c.do(pending{what: "attach", name: instance, disk: disk}, "disk", "attach", instance+"/"+disk, "--as", "qemu"); !ok {
		return
	}
	d.attached = true
	if d.format != "raw" {
		return
	}
	r, ok := c.do(pending{what: "show"}, "disk", "show", instance+"/"+disk, "-o", "json")
	if !ok {
		return
	}
	if r, ok = c.do(pending{what: "show"}, "volume", "show", field(r, "volume"), "-o", "json"); !ok {
		return
	}
	data := Pattern(c.rng.Uint64(), 64<<10)
	at := c.rng.Int64N(d.size-int64(len(data))) &^ 4095
	err := c.l.pool.Write(api.Volume{Name: field(r, "name"), Path: field(r, "path")}, at, data)
	if c.l.cut.Load() { // a sync that meets the cut may or may not have worked, whatever it says
		d.unsure = true
		return
	}
	if err != nil {
		c.failed = err.Error()
		return
	}
	content := make([]byte, max(int64(len(d.content)), at+int64(len(data))))
	copy(content, d.content)
	copy(content[at:], data)
	d.content = content
}

// field returns the first string of that name in what a run printed, which may
// have been cut off.
func field(r Result, name string) string {
	_, after, _ := strings.Cut(r.Stdout, `"`+name+`": "`)
	value, _, _ := strings.Cut(after, `"`)
	return value
}

func writeSynced(v api.Volume, at int64, data []byte) error {
	f, err := os.OpenFile(v.Path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.WriteAt(data, at); err != nil {
		return err
	}
	return f.Sync()
}

// Settle waits until no operation is unfinished.
func (d *Daemon) Settle() {
	d.t.Helper()
	for _, op := range Get[api.List[api.Operation]](d, "operation", "list").Items {
		if !op.Final() {
			d.Run("operation", "wait", op.ID) // how it ended is its own affair
		}
	}
}

// Recovered compares what the restarted daemon has with what was acknowledged:
// nothing that was is lost, what was deleted is gone, what was cut off happened
// whole or not at all. It returns how many disks it read.
func (l *Load) Recovered() int {
	l.t.Helper()
	l.d.Settle()
	l.d.AssertSettled()
	l.d.AssertHealthy()
	instances := map[string]map[string]api.Disk{}
	for _, i := range Get[api.List[api.Instance]](l.d, "instance", "list").Items {
		instances[i.Name] = map[string]api.Disk{}
		for _, d := range i.Disks {
			instances[i.Name][d.Name] = d
		}
	}
	images := map[string]api.Image{}
	for _, i := range Get[api.List[api.Image]](l.d, "image", "list").Items {
		images[i.Name] = i
	}
	for _, c := range l.clients {
		c.resolve(instances, images)
		c.compare(instances, images)
	}
	for name := range instances {
		l.t.Errorf("instance %s is there and was never acknowledged, or was deleted", name)
	}
	for name := range images {
		l.t.Errorf("image %s is there and was never acknowledged, or was deleted", name)
	}
	return l.readAll()
}

// resolve finds out what became of the call that was cut off.
func (c *loader) resolve(instances map[string]map[string]api.Disk, images map[string]api.Image) {
	p := c.pending
	c.pending = pending{}
	switch p.what {
	case "import":
		if _, ok := images[p.name]; ok {
			c.images[p.name] = p.image
		}
	case "delete image":
		if _, ok := images[p.name]; !ok {
			delete(c.images, p.name)
		}
	case "create":
		if _, ok := instances[p.name]; ok {
			c.instances[p.name] = p.disks
		}
	case "delete instance":
		if _, ok := instances[p.name]; !ok {
			delete(c.instances, p.name)
		}
	case "create disk":
		for name := range instances[p.name] {
			if c.instances[p.name][name] == nil {
				c.instances[p.name][name] = &loadDisk{size: p.size, format: p.disk}
			}
		}
	case "delete disk":
		if _, ok := instances[p.name][p.disk]; !ok {
			delete(c.instances[p.name], p.disk)
		}
	case "resize":
		if d, ok := instances[p.name][p.disk]; ok && d.Size == p.size {
			c.instances[p.name][p.disk].size = p.size
		}
	case "attach", "detach":
		if d, ok := instances[p.name][p.disk]; ok {
			c.instances[p.name][p.disk].attached = d.Attached != nil
		}
	}
}

// compare checks records and takes what it has found out of the maps.
func (c *loader) compare(instances map[string]map[string]api.Disk, images map[string]api.Image) {
	t := c.l.t
	t.Helper()
	for name := range c.images {
		if i, ok := images[name]; !ok || i.State != "ready" || i.VirtualSize != mib {
			t.Errorf("acknowledged image %s: got %+v", name, i)
		}
		delete(images, name)
	}
	for name, disks := range c.instances {
		got, ok := instances[name]
		if !ok || len(got) != len(disks) {
			t.Errorf("acknowledged instance %s: got disks %v, want %v", name, sortedKeys(got), sortedKeys(disks))
		}
		for disk, want := range disks {
			g, ok := got[disk]
			if !ok || g.Size != want.size || g.Format != want.format || g.State != "ready" || (g.Attached != nil) != want.attached {
				t.Errorf("acknowledged disk %s/%s: got %s of %d bytes, %q, attached %v, want %+v", name, disk, g.Format, g.Size, g.State, g.Attached, *want)
			}
		}
		delete(instances, name)
	}
}

// readAll detaches and exports every disk.
func (l *Load) readAll() (n int) {
	l.t.Helper()
	for _, c := range l.clients {
		for _, name := range sortedKeys(c.instances) {
			l.d.Must("instance", "detach", name)
			for disk, want := range c.instances[name] {
				want.attached = false
				n++
				got := []byte(l.d.Must("disk", "export", name+"/"+disk, "-", "--format", "raw").Stdout)
				if want.unsure && int64(len(got)) == want.size {
					want.content, want.unsure = got, false
				}
				full := make([]byte, want.size)
				copy(full, want.content)
				if !bytes.Equal(got, full) {
					at := 0
					for at < len(got) && at < len(full) && got[at] == full[at] {
						at++
					}
					l.t.Errorf("acknowledged disk %s/%s (%s): %d bytes read, want %d; the first other one is at %d", name, disk, want.format, len(got), len(full), at)
				}
			}
		}
	}
	return n
}
