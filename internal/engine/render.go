package engine

import (
	"context"
	"encoding/json"
	"encoding/xml"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/tarn-storage/tarn/api"
	"github.com/tarn-storage/tarn/diskfmt"
	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/disk"
	"github.com/tarn-storage/tarn/internal/plan"
	"github.com/tarn-storage/tarn/internal/pool"
	"github.com/tarn-storage/tarn/internal/pool/driver"
	"github.com/tarn-storage/tarn/internal/store"
)

// layer is one container of a chain as a hypervisor opens it.
type layer struct {
	format diskfmt.Format
	at     driver.Attachment
}

// render prints what a hypervisor needs to open ds: one libvirt element per
// disk, or QEMU's arguments. Every layer of every chain carries its format, so
// that nothing is probed.
func (e *Engine) render(ctx context.Context, ds []diskRecords, as string) (api.Attachment, error) {
	if as != "libvirt" && as != "qemu" {
		return api.Attachment{}, errs.New(errs.Invalid, "attach", as, "%q is not a form to print", as).WithHint("use --as libvirt or --as qemu")
	}
	var out api.Attachment
	q := qemuArgs{}
	for _, r := range ds {
		chain, err := e.layers(ctx, r)
		if err != nil {
			return out, err
		}
		if as == "qemu" {
			q.disk(r.disk, chain)
			continue
		}
		x, err := libvirtDisk(r.disk, chain)
		if err != nil {
			return out, err
		}
		out.Libvirt = append(out.Libvirt, x)
	}
	out.QEMU = q.args()
	return out, nil
}

// layers returns the chain of a disk, the top first.
func (e *Engine) layers(ctx context.Context, r diskRecords) ([]layer, error) {
	vols, err := e.chain(ctx, r.volume)
	if err != nil {
		return nil, err
	}
	p, err := e.pool(r.pool)
	if err != nil {
		return nil, err
	}
	a, ok := p.Driver.(driver.Attacher)
	if !ok {
		return nil, errs.New(errs.Unsupported, "attach", r.disk.Name, "QEMU cannot open volumes of pool %s by itself", r.pool.Name)
	}
	var out []layer
	for _, v := range vols {
		at := []driver.Attachment{a.Attachment(pool.Ref(v))}
		if l, ok := p.Driver.(driver.Layered); ok {
			if at, err = l.Layers(ctx, pool.Ref(v)); err != nil {
				return nil, err
			}
		}
		for _, at := range at {
			f := v.Format
			if at.Format != "" {
				f = at.Format
			}
			out = append(out, layer{f, at})
		}
	}
	return out, nil
}

// chain returns v and what it reads from, the top first.
func (e *Engine) chain(ctx context.Context, v disk.Volume) ([]disk.Volume, error) {
	return query(ctx, e, func(ctx context.Context, tx *store.Tx) ([]disk.Volume, error) {
		out := []disk.Volume{v}
		for v.Backing != nil {
			below, err := tx.Volumes.Get(ctx, v.Backing.VolumeID)
			if err != nil {
				return nil, err
			}
			if below.Content != v.Backing.Content {
				return nil, errs.New(errs.Corrupt, "volume.open", v.Name, "it was made over content %s, its base %s holds %s", v.Backing.Content, below.Name, below.Content)
			}
			out = append(out, below)
			v = below
		}
		return out, nil
	})
}

// soundChain is chain for who is about to use it: every base is as it was imported.
func (e *Engine) soundChain(ctx context.Context, v disk.Volume) ([]disk.Volume, error) {
	chain, err := e.chain(ctx, v)
	for i := 1; i < len(chain) && err == nil; i++ {
		err = sound("volume.open", v.Name, chain[i])
	}
	return chain, err
}

// cacheFlags are what a QEMU cache mode is made of (qemu(1), "cache").
type cacheFlags struct{ direct, noFlush, writeback bool }

func cacheOf(mode string) cacheFlags {
	switch mode {
	case "writeback":
		return cacheFlags{writeback: true}
	case "writethrough":
		return cacheFlags{}
	case "directsync":
		return cacheFlags{direct: true}
	case "unsafe":
		return cacheFlags{noFlush: true, writeback: true}
	}
	return cacheFlags{direct: true, writeback: true} // none
}

// qemuArgs collects arguments; controllers come before what sits on them.
type qemuArgs struct {
	controllers []string
	disks       []string
}

// controller adds a controller if no disk needed it before.
func (q *qemuArgs) controller(device string) {
	if !slices.Contains(q.controllers, device) {
		q.controllers = append(q.controllers, "-device", device)
	}
}

func (q *qemuArgs) args() []string { return append(q.controllers, q.disks...) }

// node is one -blockdev argument.
type node map[string]any

// qemuDriver is QEMU's name for a format.
func qemuDriver(f diskfmt.Format) string {
	if f == diskfmt.Ploop {
		return "parallels"
	}
	return string(f)
}

// disk adds one disk: a node for each layer, the base first, and the device.
func (q *qemuArgs) disk(d disk.Disk, chain []layer) {
	cache := cacheOf(d.Cache)
	if chain[0].format == diskfmt.Ploop && len(chain) > 1 {
		q.drive(d, chain, cache)
		return
	}
	below := ""
	for i := len(chain) - 1; i >= 0; i-- {
		name := "d-" + d.Serial
		if i > 0 {
			name = fmt.Sprintf("b%d-%s", i, d.Serial)
		}
		ro := i > 0 || d.ReadOnly
		common := node{"read-only": ro, "cache": node{"direct": cache.direct, "no-flush": cache.noFlush}}
		if !ro {
			common["discard"] = d.Discard
		}
		file, top := node{"driver": "file", "node-name": name + "-f", "filename": chain[i].at.Path}, node{"driver": qemuDriver(chain[i].format), "node-name": name, "file": name + "-f"}
		switch at := chain[i].at; {
		case at.Type == "block":
			file["driver"] = "host_device"
		case at.Network != nil:
			file = networkNode(at.Network, d.Serial)
			file["node-name"] = name + "-f"
			q.disks = append(q.disks, secret(at.Network, d.Serial)...)
		}
		if chain[i].format == diskfmt.Qcow2 {
			top["backing"] = nil
		}
		if below != "" {
			top["backing"] = below
		}
		for k, v := range common {
			file[k], top[k] = v, v
		}
		q.disks = append(q.disks, "-blockdev", file.String(), "-blockdev", top.String())
		below = name
	}
	q.disks = append(q.disks, "-device", q.device(d, below, cache))
}

// drive adds a disk of Parallels images. QEMU reads what is below one, but its
// -blockdev has no word for that (QAPI: BlockdevOptionsGenericFormat); -drive
// takes the nodes in each other, which inherit its cache mode.
func (q *qemuArgs) drive(d disk.Disk, chain []layer, cache cacheFlags) {
	name := "d-" + d.Serial
	onOff := map[bool]string{true: "on", false: "off"}
	opts := []string{"if=none", "id=" + name, "read-only=" + onOff[d.ReadOnly], "cache.direct=" + onOff[cache.direct], "cache.no-flush=" + onOff[cache.noFlush]}
	if !d.ReadOnly {
		opts = append(opts, "discard="+d.Discard)
	}
	under := ""
	for i, l := range chain {
		node := name
		if i > 0 {
			under += "backing."
			node = fmt.Sprintf("b%d-%s", i, d.Serial)
			opts = append(opts, under+"read-only=on")
		}
		opts = append(opts, under+"driver="+qemuDriver(l.format), under+"node-name="+node+"-n",
			under+"file.driver=file", under+"file.filename="+strings.ReplaceAll(l.at.Path, ",", ",,"))
	}
	q.disks = append(q.disks, "-drive", strings.Join(opts, ","), "-device", q.device(d, name, cache))
}

// String writes the node as JSON, whose keys are in order.
func (n node) String() string {
	b, _ := json.Marshal(n) // plain data: cannot fail
	return string(b)
}

// Limits of what QEMU's controllers can have.
const (
	lunsPerTarget = 1 << 14
	portsPerAHCI  = 6
)

// device places the disk by its recorded device name, not by what else is
// printed: a guest must find it where it was (I7).
func (q *qemuArgs) device(d disk.Disk, drive string, cache cacheFlags) string {
	kind := "hd"
	if d.Role == disk.RoleCdrom {
		kind = "cd"
	}
	var dev []string
	switch at := plan.DeviceIndex(d.Device); d.Bus {
	case "scsi":
		q.controller("virtio-scsi-pci,id=tarn-scsi")
		dev = []string{"scsi-" + kind, "bus=tarn-scsi.0", "channel=0", fmt.Sprintf("scsi-id=%d", at/lunsPerTarget), fmt.Sprintf("lun=%d", at%lunsPerTarget)}
	case "sata":
		q.controller(fmt.Sprintf("ich9-ahci,id=tarn-sata%d", at/portsPerAHCI))
		dev = []string{"ide-" + kind, fmt.Sprintf("bus=tarn-sata%d.%d", at/portsPerAHCI, at%portsPerAHCI)}
	default:
		dev = []string{"virtio-blk-pci"}
	}
	dev = append(dev, "id=tarn-"+d.Serial, "drive="+drive, "serial="+d.Serial)
	if kind == "hd" && !cache.writeback {
		dev = append(dev, "write-cache=off")
	} else if kind == "hd" {
		dev = append(dev, "write-cache=on")
	}
	if d.BootIndex > 0 {
		dev = append(dev, "bootindex="+strconv.Itoa(d.BootIndex))
	}
	return strings.Join(dev, ",")
}

// The libvirt elements that tarn prints (libvirt's "Domain XML format", "Hard
// drives, floppy disks, CDROMs"). Every source says that libvirt must not
// change its owner: it would give a base to QEMU's user.
type (
	xmlDisk struct {
		XMLName  xml.Name    `xml:"disk"`
		Type     string      `xml:"type,attr"`
		Device   string      `xml:"device,attr"`
		Driver   xmlDriver   `xml:"driver"`
		Source   xmlSource   `xml:"source"`
		Backing  *xmlBacking `xml:"backingStore"`
		Target   xmlTarget   `xml:"target"`
		ReadOnly *struct{}   `xml:"readonly"`
		Serial   string      `xml:"serial"`
		Boot     *xmlBoot    `xml:"boot"`
	}
	xmlDriver struct {
		Name    string `xml:"name,attr"`
		Type    string `xml:"type,attr"`
		Cache   string `xml:"cache,attr,omitempty"`
		Discard string `xml:"discard,attr,omitempty"`
	}
	xmlSource struct {
		File     string     `xml:"file,attr,omitempty"`
		Dev      string     `xml:"dev,attr,omitempty"`
		Protocol string     `xml:"protocol,attr,omitempty"`
		Name     string     `xml:"name,attr,omitempty"`
		Hosts    []xmlHost  `xml:"host"`
		Config   *xmlConfig `xml:"config"`
		Auth     *xmlAuth   `xml:"auth"`
		Label    *xmlLabel  `xml:"seclabel"`
	}
	xmlLabel struct {
		Model   string `xml:"model,attr"`
		Relabel string `xml:"relabel,attr"`
	}
	xmlBacking struct {
		Type    string      `xml:"type,attr,omitempty"`
		Format  *xmlFormat  `xml:"format"`
		Source  *xmlSource  `xml:"source"`
		Backing *xmlBacking `xml:"backingStore"`
	}
	xmlFormat struct {
		Type string `xml:"type,attr"`
	}
	xmlTarget struct {
		Dev string `xml:"dev,attr"`
		Bus string `xml:"bus,attr"`
	}
	xmlBoot struct {
		Order int `xml:"order,attr"`
	}
)

func libvirtSource(l layer) xmlSource {
	if l.at.Network != nil {
		return libvirtNetwork(l.at.Network)
	}
	s := xmlSource{Label: &xmlLabel{Model: "dac", Relabel: "no"}}
	if l.at.Type == "block" {
		s.Dev = l.at.Path
	} else {
		s.File = l.at.Path
	}
	return s
}

// libvirtDisk prints one <disk>. An empty backingStore ends the chain, so that
// libvirt looks no further.
func libvirtDisk(d disk.Disk, chain []layer) (string, error) {
	if chain[0].format == diskfmt.Ploop && len(chain) > 1 {
		return "", errs.New(errs.Unsupported, "attach", d.Name, "the disk has snapshots, and libvirt knows no layers of Parallels images").
			WithHint("delete its snapshots, or use --as qemu")
	}
	x := xmlDisk{
		Type: chain[0].at.Type, Device: "disk", Source: libvirtSource(chain[0]), Target: xmlTarget{d.Device, d.Bus}, Serial: d.Serial,
		Driver: xmlDriver{Name: "qemu", Type: string(chain[0].format), Cache: d.Cache, Discard: d.Discard},
	}
	if d.Role == disk.RoleCdrom {
		x.Device = "cdrom"
	}
	if d.ReadOnly {
		x.ReadOnly = &struct{}{}
	}
	if d.BootIndex > 0 {
		x.Boot = &xmlBoot{d.BootIndex}
	}
	end := &x.Backing
	for _, l := range chain[1:] {
		src := libvirtSource(l)
		*end = &xmlBacking{Type: l.at.Type, Format: &xmlFormat{string(l.format)}, Source: &src}
		end = &(*end).Backing
	}
	*end = &xmlBacking{}
	b, err := xml.MarshalIndent(x, "", "  ")
	if err != nil {
		return "", errs.New(errs.Internal, "attach", d.Name, "the disk does not print: %w", err)
	}
	return string(b), nil
}
