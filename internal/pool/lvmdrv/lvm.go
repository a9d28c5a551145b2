package lvmdrv

import (
	"context"
	"encoding/json"
	"errors"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/hostexec"
	"github.com/tarn-storage/tarn/internal/pool/driver"
)

// maxReport bounds a report of LVM's: about 300 bytes for each logical volume.
const maxReport = 16 << 20

// source is the volume group, and the thin pool in it, that a pool lies in.
type source struct {
	vg       string
	thinPool string // "" for a pool of thick volumes
	group    group
	poolUUID string // of the thin pool
	chunk    int64  // bytes that the thin pool maps at once
	wipe     bool   // what is removed is overwritten first
}

// group is what LVM says of a volume group.
type group struct {
	uuid                        string
	size, free, extent, mdaSize int64 // bytes; the last of its metadata

	system string // the host that LVM keeps it for; "" for any
	shared string // how LVM lets several hosts use it at once, if it does
}

// groupFields are what groupOf reads.
const groupFields = "vg_uuid,vg_size,vg_free,vg_extent_size,vg_mda_size,vg_systemid,vg_shared,vg_lock_type,vg_clustered"

func groupOf(row map[string]string) (g group, err error) {
	g.uuid, g.system, g.shared = row["vg_uuid"], row["vg_systemid"], row["vg_shared"]+row["vg_clustered"]
	if lock := row["vg_lock_type"]; lock != "none" && g.shared == "" {
		g.shared = lock
	}
	return g, numbers(row, map[string]*int64{"vg_size": &g.size, "vg_free": &g.free, "vg_extent_size": &g.extent, "vg_mda_size": &g.mdaSize})
}

// lv is what LVM says of a logical volume.
type lv struct {
	name, uuid string
	size       int64
	tags       []string
	pool       string // the thin pool of a thin one
	origin     string // what it is a snapshot of
	segment    string // "linear", "thin", "thin-pool", "snapshot", ...
	active     bool
	zero       bool // a thin pool that zeroes what it maps
}

func (s *source) String() string {
	if s.thinPool != "" {
		return s.vg + "/" + s.thinPool
	}
	return s.vg
}

// recordsName names the records volume. It lies in the group itself, so that a
// full thin pool does not keep records from being written.
func (s *source) recordsName() string {
	if s.thinPool != "" {
		return ownPrefix + "records-" + s.thinPool
	}
	return ownPrefix + "records"
}

// find looks at the group and the thin pool that c names and at the logical
// volumes there.
func (t technology) find(ctx context.Context, op string, c driver.Config) (*source, map[string]lv, error) {
	s := &source{vg: c.Source.VolumeGroup, wipe: c.Source.Wipe == wipeZero}
	if t.thin {
		s.thinPool = c.Source.ThinPool
	}
	if err := ctx.Err(); err != nil {
		return nil, nil, failed(op, s.String(), err)
	}
	if !isLVMName(s.vg) || t.thin && !isLVMName(s.thinPool) || len(dmName(s.vg, "")) > 40 {
		return nil, nil, errs.New(errs.Invalid, op, s.String(), "%q is no name of %s", s.String(), map[bool]string{false: "a volume group", true: "a thin pool in a volume group"}[t.thin])
	}
	if !s.wipe && c.Source.Wipe != "" {
		return nil, nil, errs.New(errs.Invalid, op, s.String(), "wipe is %q; it can be %q or left out", c.Source.Wipe, wipeZero)
	}
	lvs, g, err := s.listGroup(ctx, op)
	if err == nil && g.uuid == "" { // no logical volume tells
		g, err = s.groupNow(ctx, op)
	}
	if err == nil {
		err = g.private(op, s.vg)
	}
	if err != nil {
		return nil, nil, err
	}
	s.group = g
	if g.extent <= 0 || sizeUnit%g.extent != 0 {
		return nil, nil, errs.New(errs.Unsupported, op, s.vg, "the volume group's extents have %d bytes, which do not divide %d", g.extent, sizeUnit).
			WithHint("vgchange --physicalextentsize 4m %s", s.vg)
	}
	if t.thin {
		err = s.findThinPool(ctx, op, lvs)
	}
	if err != nil {
		return nil, nil, err
	}
	return s, lvs, nil
}

func isLVMName(s string) bool {
	return s != "" && plain(s) && s[0] != '-' && s != "." && s != ".."
}

// findThinPool refuses what is no thin pool, and one that hands out what others
// wrote.
func (s *source) findThinPool(ctx context.Context, op string, lvs map[string]lv) error {
	v, there := lvs[s.thinPool]
	if !there || v.segment != "thin-pool" {
		return absent(op, s.String(), "the volume group %s has no thin pool %s", s.vg, s.thinPool).
			WithHint("lvcreate --type thin-pool -L SIZE -n %s %s", s.thinPool, s.vg)
	}
	if !v.zero {
		return errs.New(errs.Unsafe, op, s.String(), "the thin pool %s does not zero what it hands out: a guest could read what others wrote", s).
			WithHint("lvchange --zero y %s", s)
	}
	s.poolUUID = v.uuid
	if err := s.activate(ctx, v); err != nil {
		return failed(op, s.String(), err)
	}
	u, err := s.thinUsage()
	s.chunk = u.chunk
	return failed(op, s.String(), err)
}

// groupNow asks LVM for the group; one that is missing is errs.Unavailable.
func (s *source) groupNow(ctx context.Context, op string) (g group, err error) {
	options := []hostexec.Option{hostexec.Flag("vgs"), hostexec.OptionValue("-o", hostexec.Word("vg_name,vg_exported,"+groupFields))}
	rows, err := report(ctx, op, s.String(), "vg", options)
	if err != nil {
		return g, err
	}
	of := func(r map[string]string) bool { return r["vg_name"] == s.vg }
	at := slices.IndexFunc(rows, of)
	foreign := at < 0
	if foreign { // LVM shows another host's only to those who ask
		if rows, err = report(ctx, op, s.String(), "vg", append(options, hostexec.Flag("--foreign"))); err != nil {
			return g, err
		}
		at = slices.IndexFunc(rows, of)
	}
	if at < 0 {
		return g, absent(op, s.vg, "there is no volume group %s on this host", s.vg).
			WithHint("vgs lists the groups; are its devices there?")
	}
	g, err = groupOf(rows[at])
	switch {
	case err != nil:
	case foreign && g.system != "":
		err = errs.New(errs.Conflict, op, s.vg, "the volume group %s is another host's: its system ID is %q", s.vg, g.system).
			WithHint("a volume group serves one host; vgs --foreign shows whose it is")
	case rows[at]["vg_exported"] != "":
		err = errs.New(errs.Unavailable, op, s.vg, "the volume group %s is exported", s.vg).WithHint("vgimport %s", s.vg)
	}
	return g, failed(op, s.vg, err)
}

// private refuses a group that several hosts may use at once: the lock that keeps a
// pool to one tarnd is seen on this host only.
func (g group) private(op, vg string) error {
	if g.shared == "" {
		return nil
	}
	return errs.New(errs.Unsupported, op, vg, "the volume group %s is shared between hosts (%s)", vg, g.shared).
		WithHint("a pool needs a volume group that one host has for itself: see vgchange --lock-type none")
}

// errAbsent is the cause of errors that say that nothing is left of a pool's
// storage.
var errAbsent = errors.New("absent")

func absent(op, subject, format string, args ...any) *errs.Error {
	e := errs.New(errs.Unavailable, op, subject, format, args...)
	e.Err = errAbsent
	return e
}

// list returns the group's visible logical volumes by name.
func (s *source) list(ctx context.Context, op string) (map[string]lv, error) {
	lvs, _, err := s.listGroup(ctx, op)
	return lvs, err
}

// listGroup is list, and what the group is where it has a logical volume.
func (s *source) listGroup(ctx context.Context, op string) (lvs map[string]lv, g group, err error) {
	rows, err := report(ctx, op, s.String(), "lv", []hostexec.Option{hostexec.Flag("lvs"),
		hostexec.OptionValue("-o", hostexec.Word("lv_name,lv_uuid,lv_size,lv_tags,pool_lv,origin,segtype,lv_active,zero,"+groupFields))}, s.vg)
	if err != nil {
		if _, gone := s.groupNow(ctx, op); gone != nil {
			err = gone
		}
		return nil, g, err
	}
	lvs = make(map[string]lv, len(rows))
	for _, r := range rows {
		v := lv{name: r["lv_name"], uuid: r["lv_uuid"], pool: r["pool_lv"], origin: r["origin"], segment: r["segtype"],
			active: r["lv_active"] != "", zero: r["zero"] == "zero"}
		if r["lv_tags"] != "" {
			v.tags = strings.Split(r["lv_tags"], ",")
		}
		err := numbers(r, map[string]*int64{"lv_size": &v.size})
		if err == nil {
			g, err = groupOf(r)
		}
		if err != nil {
			return nil, g, failed(op, s.String(), err)
		}
		lvs[v.name] = v
	}
	return lvs, g, nil
}

// report runs a command of LVM's that lists things, and returns its rows.
func report(ctx context.Context, op, subject, kind string, options []hostexec.Option, operands ...string) ([]map[string]string, error) {
	options = append(options, hostexec.OptionValue("--reportformat", hostexec.Word("json")),
		hostexec.OptionValue("--units", hostexec.Word("b")), hostexec.Flag("--nosuffix"))
	out, err := hostexec.Run(ctx, hostexec.Call{Program: hostexec.LVM, Options: options, Operands: texts(operands), Query: true, Output: maxReport})
	if err != nil {
		return nil, failed(op, subject, err)
	}
	var parsed struct {
		Report []map[string][]map[string]string `json:"report"`
	}
	if err := json.Unmarshal([]byte(out.Stdout), &parsed); err != nil {
		return nil, errs.New(errs.Internal, op, subject, "LVM's report does not parse: %w", err)
	}
	var rows []map[string]string
	for _, r := range parsed.Report {
		rows = append(rows, r[kind]...)
	}
	return rows, nil
}

func texts(words []string) (values []hostexec.Value) {
	for _, w := range words {
		values = append(values, hostexec.Text(w))
	}
	return values
}

// numbers parses fields of a report's row.
func numbers(row map[string]string, fields map[string]*int64) error {
	for name, to := range fields {
		n, err := strconv.ParseInt(row[name], 10, 64)
		if err != nil {
			return errs.New(errs.Internal, "lvm.report", name, "LVM says %q", row[name])
		}
		*to = n
	}
	return nil
}

// change runs a command of LVM's that changes something. It is not stopped
// half-way, because LVM suspends devices while it works: one that outlives this
// process holds LVM's lock of the group, for which the next one's wait. need is the space in the group
// that it takes.
func (s *source) change(ctx context.Context, need int64, options []hostexec.Option, operands ...string) error {
	ctx = context.WithoutCancel(ctx)
	_, err := hostexec.Run(ctx, hostexec.Call{Program: hostexec.LVM, Options: options, Operands: texts(operands), Output: maxReport, Finish: true})
	var exit *hostexec.Exit
	if !errors.As(err, &exit) {
		return err
	}
	// LVM's exit status tells nothing: see why it cannot be.
	g, gone := s.groupNow(ctx, "lvm")
	switch {
	case gone != nil:
		return gone
	case need > g.free:
		return errs.New(errs.NoSpace, "lvm", s.vg, "the volume group %s has %d bytes free, %d are needed: %w", s.vg, g.free, need, exit)
	}
	return err
}

// path is how LVM's commands name a logical volume.
func (s *source) path(name string) string { return s.vg + "/" + name }

// activate makes logical volumes usable that are not.
func (s *source) activate(ctx context.Context, lvs ...lv) error {
	var paths []string
	for _, v := range lvs {
		if !v.active {
			paths = append(paths, s.path(v.name))
		}
	}
	if len(paths) == 0 {
		return nil
	}
	slices.Sort(paths)
	return s.change(ctx, 0, []hostexec.Option{hostexec.Flag("lvchange"), hostexec.Flag("--yes"),
		hostexec.OptionValue("--activate", hostexec.Word("y")), hostexec.Flag("--ignoreactivationskip")}, paths...)
}

// rename renames a logical volume.
func (s *source) rename(ctx context.Context, from, to string) error {
	return s.change(ctx, 0, []hostexec.Option{hostexec.Flag("lvrename")}, s.vg, from, to)
}

// removeLV removes a logical volume. One that somebody has open is errs.Busy.
func (s *source) removeLV(ctx context.Context, name string) error {
	if s.wipe {
		if err := s.overwrite(ctx, name); err != nil {
			return err
		}
	}
	err := s.change(ctx, 0, []hostexec.Option{hostexec.Flag("lvremove"), hostexec.Flag("--yes"), hostexec.Flag("--force")}, s.path(name))
	var exit *hostexec.Exit
	if errors.As(err, &exit) {
		if m, merr := mapped(dmName(s.vg, name)); merr == nil && m.opens > 0 {
			return errs.New(errs.Busy, "lvm", name, "%s has the logical volume %s open: %w", holderOf(s.node(name)), s.path(name), exit).
				WithHint("stop the guest or the program that uses it")
		}
	}
	return err
}

// resizeLV gives a logical volume another size.
func (s *source) resizeLV(ctx context.Context, v lv, size int64) error {
	verb := hostexec.Flag("lvextend")
	need := size - v.size
	if size < v.size {
		verb, need = hostexec.Flag("lvreduce"), 0
	}
	if s.thinPool != "" {
		need = 0
	}
	options := []hostexec.Option{verb, hostexec.Flag("--yes"), hostexec.Flag("--force"), sizeOption(size)}
	err := s.change(ctx, need, options, s.path(v.name))
	var exit *hostexec.Exit
	if errors.As(err, &exit) && size < v.size { // since 2.03.17 it looks for a file system that is cut off
		if s.change(ctx, 0, append(options, hostexec.OptionValue("--fs", hostexec.Word("ignore"))), s.path(v.name)) == nil {
			return nil
		}
	}
	return err
}

// tag adds and removes a tag of a logical volume.
func (s *source) tag(ctx context.Context, name, tag string) error {
	return s.change(ctx, 0, []hostexec.Option{hostexec.Flag("lvchange"), hostexec.OptionValue("--addtag", hostexec.Text(tag))}, s.path(name))
}

func (s *source) untag(ctx context.Context, name, tag string) error {
	return s.change(ctx, 0, []hostexec.Option{hostexec.Flag("lvchange"), hostexec.OptionValue("--deltag", hostexec.Text(tag))}, s.path(name))
}

func sizeOption(size int64) hostexec.Option {
	return hostexec.OptionValue("--size", hostexec.Text(strconv.FormatInt(size, 10)+"b"))
}

// makeLV makes a logical volume of the pool's kind, active and with tag.
func (s *source) makeLV(ctx context.Context, name string, size int64, tag string) error {
	options := []hostexec.Option{hostexec.Flag("lvcreate"), hostexec.Flag("--yes"), hostexec.OptionValue("--name", hostexec.Text(name)),
		hostexec.OptionValue("--wipesignatures", hostexec.Word("n")), hostexec.OptionValue("--addtag", hostexec.Text(tag))}
	if s.thinPool != "" {
		options = append(options, hostexec.OptionValue("--virtualsize", hostexec.Text(strconv.FormatInt(size, 10)+"b")),
			hostexec.OptionValue("--thinpool", hostexec.Text(s.thinPool)))
		return s.change(ctx, 0, options, s.vg)
	}
	return s.change(ctx, size, append(options, hostexec.OptionValue("--zero", hostexec.Word("n")), sizeOption(size)), s.vg)
}

// checkSize refuses sizes that LVM does not count in extents.
func (s *source) checkSize(op, subject string, size int64) error {
	if size < 0 || size%sizeUnit != 0 || size/s.group.extent > math.MaxUint32 {
		return errs.New(errs.Invalid, op, subject, "size %d: a logical volume's is a multiple of %d, and less than 2^32 extents of the group", size, sizeUnit)
	}
	return nil
}

// names returns the keys of lvs in order.
func names(lvs map[string]lv) []string { return slices.Sorted(maps.Keys(lvs)) }
