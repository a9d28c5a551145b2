package engine_test

import (
	"bytes"
	"context"
	"database/sql"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	_ "modernc.org/sqlite"

	"github.com/tarn-storage/tarn/api"
	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/engine"
)

// doctor runs a check.
func (b *bench) doctor(repair bool) api.Report {
	b.t.Helper()
	r, err := b.Doctor(context.Background(), api.Doctor{Repair: repair})
	if err != nil {
		b.t.Fatal(err)
	}
	return r
}

// silent demands that a check finds nothing.
func (b *bench) silent(after string) {
	b.t.Helper()
	for _, p := range b.doctor(false).Problems {
		b.t.Errorf("after %s: %s %s: %s", after, p.Invariant, p.Object, p.Detail)
	}
}

// sql changes the database behind the daemon's back, with nothing that guards it.
func (b *bench) sql(statements ...string) {
	b.t.Helper()
	b.stop()
	db, err := sql.Open("sqlite", "file:"+filepath.Join(b.state, "tarn.db"))
	if err != nil {
		b.t.Fatal(err)
	}
	for _, s := range statements {
		if _, err := db.Exec(s); err != nil {
			b.t.Fatalf("%s: %v", s, err)
		}
	}
	if err := db.Close(); err != nil {
		b.t.Fatal(err)
	}
	b.start()
}

func TestDoctorIsSilent(t *testing.T) {
	ctx := context.Background()
	b := newBench(t)
	none := api.Options{}
	root := t.TempDir()
	step := func(what string, out api.Outcome, err error) {
		t.Helper()
		b.must(out, err)
		b.silent(what)
	}
	try := func(what string, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		b.silent(what)
	}
	create := func(name string, over float64) {
		out, err := b.PoolCreate(ctx, none, api.PoolCreate{Name: name, Driver: "dir", Path: filepath.Join(root, name), Overcommit: &over})
		step("pool create "+name, out, err)
	}
	create("one", 1)
	create("two", 1.5)
	over, format, name := 2.0, "qcow2", "uno"
	out, err := b.PoolSet(ctx, none, "one", api.PoolSet{Overcommit: &over, Name: &name, DiskFormat: &format})
	step("pool set", out, err)
	data := b.image("debian", 3<<20+512, "uno")
	b.silent("image import")
	same := filepath.Join(root, "same.raw")
	if err := os.WriteFile(same, data, 0o600); err != nil {
		t.Fatal(err)
	}
	b.importFile("twin", same, "raw", "uno")
	b.silent("image import of the same content")
	b.importFile("far", same, "raw", "two")
	b.silent("image import of the same content in another pool")
	b.image("other", 2<<20, "uno")
	out, err = b.CacheAdd(ctx, none, api.CacheAdd{Image: "other", Pool: "two"})
	step("cache add", out, err)
	out, err = b.ImageRename(ctx, none, "other", "autre")
	step("image rename", out, err)
	disks := []api.DiskSpec{{Role: "root", Image: "debian", Size: 8 << 20}, {Role: "ephemeral", Size: 16 << 20, FS: "ext4"}, {Role: "swap", Size: 2 << 20, Pool: "two"}, {Role: "cdrom", Image: "autre"}}
	out, err = b.InstanceCreate(ctx, none, api.InstanceCreate{Name: "web1", Pool: "uno", Disks: disks,
		ConfigDrive: &api.ConfigDrive{Kind: "cidata", Files: []api.ConfigFile{{Path: "user-data", Data: []byte("#cloud-config\n")}}}})
	step("instance create", out, err)
	out, err = b.DiskCreate(ctx, none, api.DiskCreate{Instance: "web1", Disk: api.DiskSpec{Role: "data", Size: 4 << 20, Format: "raw", Pool: "two"}})
	step("disk create", out, err)
	for _, ref := range []string{"web1/root", "web1/data0"} {
		out, err = b.DiskResize(ctx, none, ref, api.DiskResize{By: 1 << 20})
		step("resize of "+ref, out, err)
	}
	_, err = b.DiskAttach(ctx, "web1/data0", api.Attach{As: "qemu", Target: "vdx"})
	try("disk attach", err)
	try("disk detach", b.DiskDetach(ctx, "web1/data0", api.Detach{Force: true}))
	_, err = b.InstanceAttach(ctx, "web1", api.Attach{As: "libvirt"})
	try("attach", err)
	out, err = b.InstanceRename(ctx, none, "web1", "web2")
	step("rename while attached", out, err)
	b.restart()
	b.silent("restart")
	try("detach", b.InstanceDetach(ctx, "web2", api.Detach{}))
	out, err = b.PoolStop(ctx, none, "two")
	step("pool stop", out, err)
	b.importFile("late", same, "raw", "uno")
	b.silent("import while a pool that holds the content is stopped")
	out, err = b.PoolStart(ctx, none, "two")
	step("pool start", out, err)
	out, err = b.ImageDelete(ctx, none, "late")
	step("image delete", out, err)
	out, err = b.PoolDelete(ctx, none, "two", true)
	step("pool delete --keep-data", out, err)
	out, err = b.InstanceRename(ctx, none, "web2", "web3")
	step("rename meanwhile", out, err)
	if err := os.Rename(filepath.Join(root, "two"), filepath.Join(root, "moved")); err != nil {
		t.Fatal(err)
	}
	out, err = b.PoolImport(ctx, none, api.PoolImport{Driver: "dir", Path: filepath.Join(root, "moved")})
	step("pool import", out, err)
	out, err = b.DiskDelete(ctx, none, "web3/data0")
	step("disk delete", out, err)
	b.stop()
	b.start()
	b.loseDatabase()
	for _, dir := range []string{"one", "moved"} {
		out, err = b.PoolImport(ctx, none, api.PoolImport{Driver: "dir", Path: filepath.Join(root, dir)})
		step("pool import of "+dir+" after a lost database", out, err)
	}
	out, err = b.InstanceDelete(ctx, none, "web3")
	step("instance delete", out, err)
	out, err = b.CachePrune(ctx, none, api.CachePrune{})
	step("cache prune", out, err)
	b.fails(errs.NoSpace, api.Outcome{}, failure(b.InstanceCreate(ctx, none, api.InstanceCreate{Name: "huge", Pool: "uno", Disks: []api.DiskSpec{{Role: "data", Size: 60 << 40}}})))
	b.silent("a refusal")
}

func failure(_ api.Outcome, err error) error { return err }

// breakage is one thing broken by hand and what a check must say of it.
type breakage struct {
	name      string
	invariant string
	object    string // must be in the problem's
	detail    string // must be in the problem's
	sql       []string
	first     func(t *testing.T, b *bench)    // before anything else
	files     func(t *testing.T, pool string) // changes the pool while the engine runs
	mended    bool                            // --repair makes the next check silent
	after     func(t *testing.T, b *bench, pool string)
}

// file returns the path of the only file in the pool that matches.
func file(t *testing.T, pool, pattern string) string {
	t.Helper()
	m, err := filepath.Glob(filepath.Join(pool, pattern))
	if err != nil || len(m) != 1 {
		t.Fatalf("%s matches %v, %v; want one file", pattern, m, err)
	}
	return m[0]
}

func overwrite(t *testing.T, path string, off int64, data string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err == nil {
		_, err = f.WriteAt([]byte(data), off)
	}
	if err == nil {
		err = f.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
}

func do(t *testing.T, errors ...error) {
	t.Helper()
	for _, err := range errors {
		if err != nil {
			t.Fatal(err)
		}
	}
}

// refused demands that a disk cannot be read, as its record says.
func refused(ref string) func(*testing.T, *bench, string) {
	return func(t *testing.T, b *bench, _ string) {
		var out bytes.Buffer
		err := b.DiskExport(context.Background(), ref, api.Export{Format: "raw"}, engine.Sink{Stream: &out}, nil)
		b.fails(errs.Corrupt, api.Outcome{}, err)
		if err == nil {
			t.Errorf("%s was exported", ref)
		}
	}
}

func breakages() []breakage {
	set := func(columns, which string) []string {
		return []string{"UPDATE volumes SET " + columns + " WHERE " + which}
	}
	const raw, over, base = "name LIKE '%data0.raw'", "name LIKE '%root0.qcow2'", "kind = 'base'"
	return []breakage{
		{name: "a volume's bytes are gone", invariant: "I1", object: "web1/data0", detail: "not in pool", mended: true, after: refused("web1/data0"),
			files: func(t *testing.T, pool string) { do(t, os.Remove(file(t, pool, "*data0.raw"))) }},
		{name: "another file has a volume's name", invariant: "I1", object: "web1/data0", detail: "another file", mended: true, after: refused("web1/data0"),
			files: func(t *testing.T, pool string) {
				f := file(t, pool, "*data0.raw")
				do(t, os.Rename(f, filepath.Join(pool, ".aside")), os.WriteFile(f, make([]byte, 4<<20), 0o600))
			}},
		{name: "creating without an operation", invariant: "I1", object: "web1/data0", detail: "creating", mended: true, sql: set("state = 'creating'", raw)},
		{name: "deleting without an operation", invariant: "I1", object: "web1/data0", detail: "deleting", mended: true, sql: set("state = 'deleting'", raw)},
		{name: "resizing without an operation", invariant: "I1", object: "web1/data0", detail: "resizing", mended: true, sql: set("state = 'resizing'", raw)},
		{name: "an orphan", invariant: "I1", object: "data0.raw", detail: "no record", mended: true,
			sql: []string{"DELETE FROM disks WHERE name = 'data0'", "DELETE FROM volumes WHERE " + raw, "UPDATE pool_sums SET committed = (SELECT SUM(committed) FROM volumes), writing = 0, provisioned = (SELECT SUM(virtual_size) FROM volumes), allocated = (SELECT SUM(allocated) FROM volumes)"},
			after: func(t *testing.T, b *bench, _ string) {
				if got := b.read("web1/data0"); len(got) != 4<<20 {
					t.Errorf("the adopted disk has %d bytes", len(got))
				}
			}},
		{name: "a staged volume of nobody", invariant: "I1", object: "0198", detail: "staged", mended: true,
			files: func(t *testing.T, pool string) {
				do(t, os.WriteFile(filepath.Join(pool, ".tarn-tmp", "01980000-0000-7000-8000-000000000000.raw"), []byte("kept"), 0o600))
			},
			after: func(t *testing.T, _ *bench, pool string) { file(t, pool, ".tarn-quarantine/0198*.raw") }},
		{name: "an image that nobody imports", invariant: "I1", object: "half", detail: "creating", mended: true,
			sql: []string{"INSERT INTO images SELECT 'half', 'half', 'creating', format, 0, 0, '', '', created_at, updated_at, 0, NULL, NULL FROM images"}},
		{name: "a disk without a volume", invariant: "I1", detail: "not on record",
			sql: []string{"UPDATE disks SET volume_id = 'gone' WHERE name = 'swap'", "UPDATE volumes SET kind = 'base', content = '', state = 'quarantined' WHERE name LIKE '%swap0%'"}},
		{name: "an unknown format", invariant: "I2", object: "web1/data0", detail: "vmdk", mended: true, sql: set("format = 'vmdk'", raw), after: refused("web1/data0")},
		{name: "an impossible size", invariant: "I2", object: "web1/data0", detail: "0 bytes were requested", mended: true, sql: set("requested_size = 0", raw)},
		{name: "a raw volume of another size", invariant: "I2", object: "web1/data0", detail: "the record says", mended: true, after: refused("web1/data0"),
			files: func(t *testing.T, pool string) { do(t, os.Truncate(file(t, pool, "*data0.raw"), 1<<20)) }},
		{name: "a guest wrote another backing file", invariant: "I2", object: "web1/root", detail: "contradict", mended: true, after: refused("web1/root"),
			files: func(t *testing.T, pool string) {
				overwrite(t, file(t, pool, "*root0.qcow2"), 24, "\x00\x00\x00\x00\x7f\x00\x00\x00")
			}},
		{name: "a missing backing volume", invariant: "I4", object: "web1/root", detail: "not on record", sql: set("backing_id = 'gone'", over)},
		{name: "a backing volume that is no base", invariant: "I4", object: "web1/root", detail: "no base", mended: true,
			sql: set("backing_id = (SELECT id FROM volumes WHERE "+raw+")", over)},
		{name: "an image that is nowhere", invariant: "I4", object: "nowhere", detail: "no pool",
			sql: []string{"INSERT INTO images SELECT 'nowhere', 'nowhere', 'ready', format, 512, 0, '', 'b3-4m:00', created_at, updated_at, 0, NULL, NULL FROM images"}},
		{name: "a swap disk with a backing", invariant: "I5", object: "web1/swap", detail: "share nothing", mended: true,
			sql: set("backing_id = (SELECT id FROM volumes WHERE kind = 'base'), backing_name = 'x', backing_format = 'raw', backing_content = ''", "name LIKE '%swap0%'")},
		{name: "a base of other content", invariant: "I5", object: "base_", detail: "whose name is", mended: true,
			first: func(t *testing.T, b *bench) { b.must(b.InstanceDelete(context.Background(), api.Options{}, "web1")) },
			sql:   []string{"UPDATE volumes SET content = 'b3-4m:" + strings.Repeat("1", 64) + "'", "UPDATE images SET content = 'b3-4m:" + strings.Repeat("1", 64) + "'"}},
		{name: "two bases of one content", invariant: "I5", object: "base_", detail: "both have the content",
			first: func(t *testing.T, b *bench) { b.image("other", 1<<20, "") },
			sql:   []string{"DROP INDEX volumes_base", "UPDATE volumes SET content = (SELECT content FROM images WHERE name = 'debian') WHERE kind = 'base'", "UPDATE images SET content = (SELECT content FROM images WHERE name = 'debian')"}},
		{name: "a link to other content", invariant: "I6", object: "web1/root", detail: "was made over", mended: true, sql: set("backing_content = 'b3-4m:11'", over)},
		{name: "a serial of another form", invariant: "I7", object: "web1/data0", detail: "SHOUT", sql: []string{"UPDATE disks SET serial = 'SHOUT' WHERE name = 'data0'"}},
		{name: "a serial twice", invariant: "I7", detail: "the serial", sql: []string{"DROP INDEX disks_serial", "UPDATE disks SET serial = (SELECT serial FROM disks WHERE name = 'root') WHERE name = 'data0'"}},
		{name: "a device name twice", invariant: "I7", detail: "the device name", sql: []string{"UPDATE disks SET device = (SELECT device FROM disks WHERE name = 'root') WHERE name = 'data0'"}},
		{name: "a boot index twice", invariant: "I7", detail: "the boot index", sql: []string{"UPDATE disks SET boot_index = (SELECT boot_index FROM disks WHERE name = 'root') WHERE name = 'data0'"}},
		{name: "a lease of a volume that is not", invariant: "I8", object: "gone", detail: "not on record", mended: true,
			sql: []string{"INSERT INTO leases SELECT 'gone', id, boot_id, 1, 'held', created_at FROM hosts"}},
		{name: "a lease of a host that is not", invariant: "I8", object: "web1/data0", detail: "host elsewhere",
			sql: []string{"INSERT INTO leases SELECT id, 'elsewhere', 'x', 1, 'held', created_at FROM volumes WHERE " + raw}},
		{name: "the ledger drifted", invariant: "I11", object: "main", detail: "add up to", mended: true, sql: []string{"UPDATE pool_sums SET committed = committed + 1"}},
		{name: "promised too much", invariant: "I11", object: "main", detail: "promised", first: func(t *testing.T, b *bench) {
			reserve := "1000T"
			b.must(b.PoolSet(context.Background(), api.Options{}, "main", api.PoolSet{Reserve: &reserve}))
		}},
		{name: "another domain", invariant: "I11", object: "main", detail: "its storage is in", mended: true, sql: []string{"UPDATE domains SET identity = 'fs:other'"}},
		{name: "an operation that stands still", invariant: "I12", object: "stuck", detail: "asks for an operator", mended: true, sql: []string{
			"INSERT INTO operations (id, kind, state, subject_type, subject_id, subject_name, steps, progress, error, cancel, attempts, owner, fence, created_at, updated_at) " +
				"SELECT 'stuck', 'disk.create', 'needs_operator', 'disk', '', 'x', json_array(json_object('kind', 'config.spool/v1', 'state', 'done', 'args', json_object('volume', 'x', 'pool', p.id))), progress, '{\"kind\":\"internal\",\"message\":\"broken\"}', 0, 5, owner, fence, o.created_at, o.updated_at FROM operations o, pools p WHERE kind = 'instance.create'"}},
		{name: "a hold that outlived its operation", invariant: "I12", object: "volume:x", detail: "has ended", mended: true,
			sql: []string{"INSERT INTO operation_resources SELECT 'volume:x', id FROM operations WHERE kind = 'instance.create'"}},
		{name: "a driver_info of the future", invariant: "I13", object: "web1/data0", detail: "version 2", sql: []string{"UPDATE disks SET driver_info = '{\"v\":2}' WHERE name = 'data0'"}},
		{name: "a sidecar of the future", invariant: "I13", object: "web1/data0", detail: "newer tarn",
			files: func(t *testing.T, pool string) {
				replace(t, file(t, pool, "*data0.raw.tarn.json"), `"version":1`, `"version":2`)
			}},
		{name: "a marker of the future", invariant: "I13", object: "main", detail: "newer tarn",
			files: func(t *testing.T, pool string) {
				replace(t, filepath.Join(pool, ".tarn-pool"), `"version":1`, `"version":2`)
			}},
		{name: "no marker", invariant: "I14", object: "main", detail: "lost its marker", mended: true,
			files: func(t *testing.T, pool string) { do(t, os.Remove(filepath.Join(pool, ".tarn-pool"))) }},
		{name: "a damaged marker", invariant: "I14", object: "main", detail: "cannot be read", mended: true,
			files: func(t *testing.T, pool string) {
				replace(t, filepath.Join(pool, ".tarn-pool"), `"name":"main"`, `"name":"moin"`)
			}},
		{name: "a marker that says something else", invariant: "I14", object: "main", detail: "disk_format", mended: true, sql: []string{"UPDATE pools SET disk_format = 'raw'"}},
		{name: "no sidecar", invariant: "I14", object: "web1/data0", detail: "lost its sidecar", mended: true,
			files: func(t *testing.T, pool string) { do(t, os.Remove(file(t, pool, "*data0.raw.tarn.json"))) }},
		{name: "a damaged sidecar", invariant: "I14", object: "web1/data0", detail: "checksum", mended: true,
			files: func(t *testing.T, pool string) {
				replace(t, file(t, pool, "*data0.raw.tarn.json"), `"role":"data"`, `"role":"root"`)
			}},
		{name: "a sidecar that says something else", invariant: "I14", object: "web1/data0", detail: "disk.cache", mended: true, sql: []string{"UPDATE disks SET cache = 'unsafe' WHERE name = 'data0'"}},
		{name: "a lone sidecar", invariant: "I14", object: "left.raw", detail: "without its volume", mended: true,
			files: func(t *testing.T, pool string) {
				do(t, os.WriteFile(filepath.Join(pool, "left.raw.tarn.json"), []byte(`{"format":"tarn-sidecar","version":1,"rec`), 0o600))
				do(t, os.WriteFile(filepath.Join(pool, "theirs.tarn.json"), []byte("{}"), 0o600)) // stays foreign
			},
			after: func(t *testing.T, _ *bench, pool string) {
				file(t, pool, ".tarn-quarantine/left.raw.tarn.json")
				file(t, pool, "theirs.tarn.json")
			}},
		{name: "a disk that everybody can read", invariant: "I14", object: "web1/data0", detail: "0644", mended: true,
			files: func(t *testing.T, pool string) { do(t, os.Chmod(file(t, pool, "*data0.raw"), 0o644)) }},
		{name: "a base that can be written", invariant: "I14", object: "base_", detail: "0660", mended: true,
			files: func(t *testing.T, pool string) { do(t, os.Chmod(file(t, pool, "base_*.raw"), 0o660)) }},
	}
}

func replace(t *testing.T, path, from, to string) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil || !strings.Contains(string(data), from) {
		t.Fatalf("%s has no %s (%v)", path, from, err)
	}
	do(t, os.WriteFile(path, []byte(strings.Replace(string(data), from, to, 1)), 0o600))
}

// patient is a bench with a pool, an image and an instance to break.
func patient(t *testing.T) (*bench, string) {
	t.Helper()
	ctx, none := context.Background(), api.Options{}
	b := newBench(t)
	pool := filepath.Join(t.TempDir(), "pool")
	b.must(b.PoolCreate(ctx, none, api.PoolCreate{Name: "main", Driver: "dir", Path: pool}))
	b.image("debian", 1<<20, "")
	b.must(b.InstanceCreate(ctx, none, api.InstanceCreate{Name: "web1", Disks: []api.DiskSpec{
		{Role: "root", Image: "debian", Size: 8 << 20, Format: "qcow2"}, {Role: "swap", Size: 1 << 20, Format: "qcow2"}, {Role: "data", Size: 4 << 20, Format: "raw"}}}))
	b.silent("making the patient")
	return b, pool
}

// TestDoctorFindsIt breaks one thing at a time and demands exactly that problem,
// and where it can be repaired safely that nothing is left of it.
func TestDoctorFindsIt(t *testing.T) {
	for _, x := range breakages() {
		t.Run(x.name, func(t *testing.T) {
			b, pool := patient(t)
			if x.first != nil {
				x.first(t, b)
			}
			if x.sql != nil {
				b.sql(x.sql...)
			}
			if x.files != nil {
				x.files(t, pool)
			}
			check := func(r api.Report, when string) {
				t.Helper()
				if len(r.Problems) != 1 {
					t.Fatalf("%s: %d problems, want one: %+v", when, len(r.Problems), r.Problems)
				}
				p := r.Problems[0]
				if p.Invariant != x.invariant || !strings.Contains(p.Object, x.object) || !strings.Contains(p.Detail, x.detail) || p.Repair == "" {
					t.Errorf("%s: got %+v, want %s, object %q, detail %q and what can be done", when, p, x.invariant, x.object, x.detail)
				}
			}
			check(b.doctor(false), "first")
			r := b.doctor(true)
			check(r, "repairing")
			if got := r.Problems[0].Repaired; got != x.mended {
				t.Errorf("the report calls it repaired: %v, want %v", got, x.mended)
			}
			if x.mended {
				b.silent("the repair")
			} else {
				check(b.doctor(false), "again")
			}
			if x.after != nil {
				x.after(t, b, pool)
			}
		})
	}
}

func TestDoctorSeesLocks(t *testing.T) {
	b, pool := patient(t)
	f, err := os.OpenFile(file(t, pool, "*data0.raw"), os.O_RDWR, 0)
	do(t, err)
	defer f.Close()
	do(t, unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_RDLCK, Start: 201, Len: 1})) // as QEMU shows that it writes
	r := b.doctor(true)
	if len(r.Problems) != 1 || r.Problems[0].Invariant != "I8" || r.Problems[0].Object != "web1/data0" {
		t.Errorf("got %+v, want I8 of web1/data0", r.Problems)
	}
	_, err = b.DiskAttach(context.Background(), "web1/swap", api.Attach{As: "qemu"})
	do(t, err, f.Close())
	r = b.doctor(false)
	if len(r.Problems) != 0 || len(r.Notes) == 0 || !strings.Contains(strings.Join(r.Notes, "\n"), "1 volumes are in use") {
		t.Errorf("with one disk attached: %+v", r)
	}
}

func TestDoctorNotes(t *testing.T) {
	ctx, none := context.Background(), api.Options{}
	b, pool := patient(t)
	for _, name := range []string{"a", "b", "c", "d"} {
		do(t, os.WriteFile(filepath.Join(pool, name+".txt"), nil, 0o644))
	}
	b.must(b.PoolCreate(ctx, none, api.PoolCreate{Name: "off", Driver: "dir", Path: filepath.Join(t.TempDir(), "off")}))
	b.must(b.PoolStop(ctx, none, "off"))
	notes := strings.Join(b.doctor(false).Notes, "\n")
	for _, want := range []string{"pool main holds 4 objects", "pool off is inactive"} {
		if !strings.Contains(notes, want) {
			t.Errorf("notes do not say %q:\n%s", want, notes)
		}
	}
	if r, err := b.Doctor(ctx, api.Doctor{Pool: "off"}); err != nil || len(r.Problems) != 0 || strings.Contains(strings.Join(r.Notes, "\n"), "main") {
		t.Errorf("doctor of one pool: %+v, %v", r, err)
	}
	if _, err := b.Doctor(ctx, api.Doctor{Pool: "none"}); errs.KindOf(err) != errs.NotFound {
		t.Errorf("doctor of no pool: %v", err)
	}
}

// TestDoctorAtWork demands that a check never takes for a problem what an
// operation is doing.
func TestDoctorAtWork(t *testing.T) {
	ctx, none := context.Background(), api.Options{}
	b, _ := patient(t)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for range 15 {
			b.do(b.DiskCreate(ctx, none, api.DiskCreate{Instance: "web1", Disk: api.DiskSpec{Role: "data", Size: 1 << 20}}))
			if _, err := b.DiskAttach(ctx, "web1/data1", api.Attach{As: "qemu"}); err != nil {
				t.Error(err)
			}
			if err := b.DiskDetach(ctx, "web1/data1", api.Detach{}); err != nil {
				t.Error(err)
			}
			b.do(b.DiskResize(ctx, none, "web1/data1", api.DiskResize{By: 1 << 20}))
			b.do(b.InstanceRename(ctx, none, "web1", "web2"))
			b.do(b.DiskDelete(ctx, none, "web2/data1"))
			b.do(b.InstanceRename(ctx, none, "web2", "web1"))
		}
	}()
	for rounds := 0; ; rounds++ {
		b.silent("a round of work")
		select {
		case <-done:
			t.Logf("%d checks", rounds+1)
			return
		default:
		}
	}
}

// TestDoctorAfterReboot demands that leases of an earlier boot are released at
// start, in the records and in the sidecars.
func TestDoctorAfterReboot(t *testing.T) {
	b, _ := patient(t)
	_, err := b.InstanceAttach(context.Background(), "web1", api.Attach{As: "qemu"})
	do(t, err)
	b.stop()
	b.start()
	b.silent("a restart while attached")
	b.sql("UPDATE leases SET boot_id = 'earlier'", "UPDATE hosts SET boot_id = 'earlier'")
	for _, d := range must(b.Disks(context.Background(), "web1", api.Page{})).Items {
		if d.Attached != nil {
			t.Errorf("%s is still attached after a reboot", d.Name)
		}
	}
	b.silent("a reboot")
}

// TestDoctorAfterAnOldDatabase demands that what was made since a copy of the
// database was taken comes back, and is what it was.
func TestDoctorAfterAnOldDatabase(t *testing.T) {
	ctx, none := context.Background(), api.Options{}
	b := newBench(t)
	b.must(b.PoolCreate(ctx, none, api.PoolCreate{Name: "main", Driver: "dir", Path: filepath.Join(t.TempDir(), "pool")}))
	old := t.TempDir()
	b.stop()
	do(t, os.CopyFS(old, os.DirFS(b.state)))
	b.start()
	b.image("debian", 1<<20, "")
	b.must(b.InstanceCreate(ctx, none, api.InstanceCreate{Name: "web1", Disks: []api.DiskSpec{{Role: "root", Image: "debian", Size: 8 << 20, Format: "qcow2"}, {Role: "data", Size: 1 << 20}}}))
	before := jsonOf(t, must(b.Instance(ctx, "web1")))
	b.stop()
	left, err := filepath.Glob(filepath.Join(b.state, "tarn.db*"))
	do(t, err)
	for _, f := range left {
		do(t, os.Remove(f))
	}
	data, err := os.ReadFile(filepath.Join(old, "tarn.db"))
	do(t, err, os.WriteFile(filepath.Join(b.state, "tarn.db"), data, 0o600))
	b.start()
	if r := b.doctor(true); len(r.Problems) != 3 {
		t.Errorf("%d problems, want the base and two disks: %+v", len(r.Problems), r.Problems)
	}
	b.silent("the repair")
	if after := jsonOf(t, must(b.Instance(ctx, "web1"))); after != before {
		t.Errorf("the instance came back as\n%s\nwant\n%s", after, before)
	}
}

func must[R any](r R, err error) R {
	if err != nil {
		panic(err)
	}
	return r
}
