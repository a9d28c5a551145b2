package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/google/uuid"

	"github.com/tarn-storage/tarn/api"
	"github.com/tarn-storage/tarn/test/system/ceph"
)

// Ceph pools of the two sides.
const (
	oursInCeph  = "tarn"
	peersInCeph = "peers"
)

// rbd measures root disks from bases in a Ceph pool, on a cluster of one node in
// memory.
func (b *bench) rbd(ctx context.Context) (err error) {
	p, err := b.peers(ctx, os.TempDir()) // where the cluster's configuration lies
	if p == nil {
		return err
	}
	defer func() { err = errors.Join(err, p.stop()) }()
	c, err := ceph.Up()
	if err != nil {
		return err
	}
	for _, pool := range []string{oursInCeph, peersInCeph} {
		_, e1 := c.Try("ceph", "osd", "pool", "create", pool, "8")
		_, e2 := c.Try("rbd", "pool", "init", pool)
		err = errors.Join(err, e1, e2)
	}
	if err != nil {
		return err
	}
	dir, err := b.fresh("rbd")
	if err != nil {
		return err
	}
	d, err := b.start(ctx, dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.stop()) }()
	n, err := p.nova(ctx, dir, options{"libvirt": {"images_rbd_pool": peersInCeph, "images_rbd_ceph_conf": c.Conf, "rbd_user": "admin"}})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, n.stop()) }()
	err = d.poolOf(ctx, api.PoolCreate{Driver: "rbd", Source: api.PoolSource{CephPool: oursInCeph, CephConf: c.Conf}})
	if err == nil {
		err = b.bases(filepath.Join(dir, "_base"))
	}
	for _, x := range cachedBases {
		file := filepath.Join(dir, "_base", x.name)
		if err == nil {
			err = d.add(ctx, x.name, file, "raw")
		}
		if err == nil {
			err = inGlance(c, file, x.name)
		}
	}
	if err != nil {
		return err
	}
	return errors.Join(b.rbdRows(ctx, c, d, n), b.rbdLibvirt(ctx, c, d, p), d.stop(), b.programs(ctx, dir))
}

// inGlance puts an image where Glance would have it.
func inGlance(c *ceph.Cluster, file, name string) error {
	at := peersInCeph + "/" + name
	_, e1 := c.Try("rbd", "import", "--no-progress", file, at)
	_, e2 := c.Try("rbd", "snap", "create", "--no-progress", at+"@snap")
	_, e3 := c.Try("rbd", "snap", "protect", at+"@snap")
	return errors.Join(e1, e2, e3)
}

func (b *bench) rbdRows(ctx context.Context, c *ceph.Cluster, d *daemon, n *nova) error {
	ours := func(x cachedBase) work { return b.root(d, x, "auto") }
	imported := func(x cachedBase) work {
		return n.work("Nova's rbd, cached base of "+x.label+" imported", 1, order{Type: "rbd", Base: x.name, Size: largeDisk}, func(_ context.Context, id string) error {
			_, err := c.Try("rbd", "rm", "--no-progress", peersInCeph+"/"+id+"_disk") // memory
			return err
		})
	}
	cloned := func(x cachedBase) work {
		url := fmt.Sprintf("rbd://%s/%s/%s/snap", c.FSID, peersInCeph, x.name)
		// Nova looks for a base on the host first: there is none of that name.
		return n.work("Nova's rbd, Glance's image of "+x.label+" cloned", handful, order{Type: "rbd", Base: "none", Size: largeDisk, Location: &url}, nil)
	}
	x := cachedBases[usual]
	return errors.Join(
		b.compare(ctx, "root disk, Ceph RBD, one at a time", ours(x), imported(x), cloned(x)),
		b.bySize(ctx, "root disk, Ceph RBD, by the base's size", ours),
		b.bySize(ctx, "the same of Nova, bases imported", imported),
		b.bySize(ctx, "the same of Nova, Glance's images cloned", cloned),
	)
}

var started = regexp.MustCompile(`(?m)\bexecve\("[^"]*/([^/"]+)"`)

// programs counts what a daemon with its state in dir starts for a disk, and
// beside it: a measurement of what others use looks at every volume.
func (b *bench) programs(ctx context.Context, dir string) error {
	if _, err := exec.LookPath("strace"); err != nil {
		fmt.Println("  the programs that are started are left out: there is no strace")
		return nil
	}
	trace := b.path("started")
	d, err := b.start(ctx, dir, "strace", "-f", "--seccomp-bpf", "-qq", "-o", trace, "-e", "trace=execve")
	if err != nil {
		return err
	}
	w := b.root(d, cachedBases[usual], "auto")
	if err = finished(d.PoolStart(ctx, patience, "p")); err == nil {
		err = w.do(ctx) // after what is done once
	}
	before, _ := os.ReadFile(trace)
	if err == nil {
		err = w.do(ctx)
	}
	after, _ := os.ReadFile(trace)
	count := map[string]int{}
	for _, m := range started.FindAllSubmatch(bytes.TrimPrefix(after, before), -1) {
		count[string(m[1])]++
	}
	for _, name := range slices.Sorted(maps.Keys(count)) {
		fmt.Printf("    %-38s %10.2f runs for each disk, in the background too\n", name, float64(count[name])/float64(w.n))
	}
	return errors.Join(err, d.stop())
}

var monitor = regexp.MustCompile(`(?m)^mon host = (\S+)$`)

// rbdLibvirt compares with libvirt's clone of a volume, which has its base's
// size.
func (b *bench) rbdLibvirt(ctx context.Context, c *ceph.Cluster, d *daemon, p *peers) error {
	conf, err := os.ReadFile(c.Conf)
	if err != nil {
		return err
	}
	address := monitor.FindSubmatch(conf)
	if address == nil {
		return fmt.Errorf("%s names no monitor", c.Conf)
	}
	key, err := c.Try("ceph", "auth", "get-key", "client.admin")
	if err != nil {
		return err
	}
	l, err := b.libvirtOf(ctx, p)
	if err != nil {
		return err
	}
	defer l.stop()
	id := uuid.NewString()
	secret := fmt.Sprintf(`<secret ephemeral='yes' private='no'><uuid>%s</uuid><usage type='ceph'><name>ceph</name></usage></secret>`, id)
	pool := fmt.Sprintf(`<pool type='rbd'><name>r</name><source><name>%s</name><host name='%s'/><auth type='ceph' username='admin'><secret uuid='%s'/></auth></source></pool>`,
		peersInCeph, address[1], id)
	secretFile, poolFile := filepath.Join(l.dir, "secret.xml"), filepath.Join(l.dir, "pool.xml")
	err = errors.Join(os.WriteFile(secretFile, []byte(secret), 0o600), os.WriteFile(poolFile, []byte(pool), 0o600))
	if err == nil {
		err = l.ask(ctx, "secret", "secret-define", secretFile)
	}
	if err == nil {
		err = l.ask(ctx, "secret", "secret-set-value", id, strings.TrimSpace(key))
	}
	if err == nil {
		err = l.virsh(ctx, "pool-create", poolFile)
	}
	if err != nil {
		return err
	}
	x := cachedBases[usual]
	return b.compare(ctx, "root disk, Ceph RBD, libvirt", b.root(d, x, "auto"), l.create(b, "r", x, handful), l.clone(b, "r", x, handful))
}
