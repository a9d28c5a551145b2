package rbddrv

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/hostexec"
	"github.com/tarn-storage/tarn/internal/pool/driver"
)

// patience is how long the cluster may leave one request without an answer.
var patience = 30 * time.Second

// unattended is how long a call that changes something may take. The cluster's
// silence ends it long before: this is for what removes or fills terabytes.
const unattended = 24 * time.Hour

// maxReport bounds what rbd may say of a pool: some hundred bytes an image.
const maxReport = 256 << 20

// tool runs Ceph's programs on one pool.
type tool struct {
	ceph, namespace string // the Ceph pool, and the namespace in it or ""
	conf, user      string
	keyFile         string // "": the key that the configuration leads to
}

// text keeps calls short.
var text = hostexec.Text

func newTool(op string, c driver.Config) (*tool, error) {
	s := c.Source
	ceph, namespace, divided := strings.Cut(s.CephPool, "/")
	t := &tool{ceph: ceph, namespace: namespace, conf: s.CephConf, user: s.CephUser, keyFile: s.SecretFile}
	if t.conf == "" {
		t.conf = "/etc/ceph/ceph.conf"
	}
	if t.user == "" {
		t.user = "admin"
	}
	switch {
	case ceph == "" || divided && namespace == "" || strings.ContainsAny(s.CephPool, "@\x00") || strings.Contains(namespace, "/"):
		return nil, errs.New(errs.Invalid, op, s.CephPool, "%q is no Ceph pool; it is POOL or POOL/NAMESPACE", s.CephPool)
	case !filepath.IsAbs(t.conf) || t.keyFile != "" && !filepath.IsAbs(t.keyFile):
		return nil, errs.New(errs.Invalid, op, t.where(), "the paths of the configuration and of the key must be absolute")
	}
	if _, err := os.Stat(t.conf); err != nil {
		return nil, errs.New(errs.Unavailable, op, t.where(), "the cluster's configuration cannot be read: %w", err).
			WithHint("name it with --ceph-conf; a cluster's administrator has it, \"ceph config generate-minimal-conf\" prints it")
	}
	return t, t.checkKey(op)
}

// checkKey refuses a key that is nobody's secret.
func (t *tool) checkKey(op string) error {
	if t.keyFile == "" {
		return nil
	}
	info, err := os.Stat(t.keyFile)
	switch {
	case err != nil:
		return errs.New(errs.Unavailable, op, t.where(), "the key of user %s cannot be read: %w", t.user, err)
	case !info.Mode().IsRegular():
		return errs.New(errs.Invalid, op, t.where(), "%s is not a file", t.keyFile)
	case info.Mode().Perm()&0o007 != 0:
		return errs.New(errs.Unsafe, op, t.where(), "everybody can read the key in %s", t.keyFile).WithHint("chmod o-rwx %s", t.keyFile)
	}
	return nil
}

// where names the storage, "POOL" or "POOL/NAMESPACE".
func (t *tool) where() string {
	if t.namespace == "" {
		return t.ceph
	}
	return t.ceph + "/" + t.namespace
}

// access are the options that every program of Ceph takes.
func (t *tool) access() []hostexec.Option {
	o := []hostexec.Option{hostexec.Joined("--conf", text(t.conf)), hostexec.Joined("--id", text(t.user)),
		hostexec.Joined("--client-mount-timeout", hostexec.Uint(uint64(max(1, patience/3/time.Second)))),
		hostexec.Joined("--rados-mon-op-timeout", hostexec.Uint(uint64(max(1, patience/time.Second)))),
		hostexec.Joined("--rados-osd-op-timeout", hostexec.Uint(uint64(max(1, patience/time.Second)))),
	}
	if t.keyFile != "" {
		o = append(o, hostexec.Joined("--keyfile", text(t.keyFile)))
	}
	return o
}

// call is one run of rbd: what it is told, and on which image, if on one.
type call struct {
	words   []hostexec.Value // the command
	image   string
	options []hostexec.Option
	query   bool // it changes nothing
	partial bool // what it leaves when it is killed is nothing to anybody
}

// rbd runs c and returns what it printed. The answer to each of its requests is
// bounded by patience, and so is a query; what it changes may take long. A change
// that has begun is not cancelled: a shrink cuts an image's end off before it
// writes the size down, a rename or a removal is several writes.
func (t *tool) rbd(ctx context.Context, op, subject string, c call) (string, error) {
	options := t.inPool()
	if c.image != "" {
		options = append(options, hostexec.Joined("--image", text(c.image)))
	}
	return t.run(ctx, op, subject, hostexec.RBD, append(options, c.options...), c)
}

// rados runs a command of rados, which says of no failure what it is: errs.Internal.
func (t *tool) rados(ctx context.Context, op, subject string, query bool, w ...string) (string, error) {
	out, err := t.run(ctx, op, subject, hostexec.Rados, t.inPool(), call{words: words(w...), query: query})
	var exit *hostexec.Exit
	if errors.As(err, &exit) && exit.Code == 1 {
		err = errs.New(errs.Internal, op, subject, "%w", exit)
	}
	return out, err
}

// inPool are the options by which Ceph's programs find the pool.
func (t *tool) inPool() []hostexec.Option {
	options := append(t.access(), hostexec.Joined("--pool", text(t.ceph)))
	if t.namespace != "" {
		options = append(options, hostexec.Joined("--namespace", text(t.namespace)))
	}
	return options
}

func (t *tool) run(ctx context.Context, op, subject string, program hostexec.Program, options []hostexec.Option, c call) (string, error) {
	if err := ctx.Err(); err != nil {
		return "", failed(op, subject, err)
	}
	limit := unattended
	if c.query {
		limit = 2 * patience
	} else if !c.partial {
		ctx = context.WithoutCancel(ctx)
	}
	parent := ctx
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	out, err := hostexec.Run(ctx, hostexec.Call{Program: program, Options: options, Operands: c.words, Query: c.query, Output: maxReport})
	if err != nil && ctx.Err() != nil && parent.Err() == nil {
		err = errs.New(errs.Unavailable, op, subject, "the Ceph cluster of pool %s does not answer", t.where())
	}
	return out.Stdout, t.failure(op, subject, err)
}

// query runs a call that changes nothing and decodes what it reports into v.
func (t *tool) query(ctx context.Context, op, subject string, c call, v any) error {
	c.query = true
	c.options = append(c.options, hostexec.Joined("--format", hostexec.Word("json")))
	out, err := t.rbd(ctx, op, subject, c)
	if err != nil {
		return err
	}
	if err := json.Unmarshal([]byte(out), v); err != nil {
		return errs.New(errs.Internal, op, subject, "rbd's report cannot be read: %w", err)
	}
	return nil
}

// kinds gives the exit status of Ceph's programs, which is an errno, its kind.
var kinds = map[syscall.Errno]errs.Kind{
	syscall.EPERM: errs.Unavailable, syscall.ENOENT: errs.NotFound, syscall.EIO: errs.Unavailable, syscall.EACCES: errs.Unavailable,
	syscall.EEXIST: errs.Exists, syscall.EBUSY: errs.Busy, syscall.EINVAL: errs.Invalid, syscall.EFBIG: errs.Invalid,
	syscall.ENOSPC: errs.NoSpace, syscall.EDQUOT: errs.NoSpace, syscall.EROFS: errs.Unavailable, syscall.ENOTEMPTY: errs.Conflict,
	syscall.EOPNOTSUPP: errs.Unsupported, syscall.ETIMEDOUT: errs.Unavailable, syscall.ESHUTDOWN: errs.Unavailable,
}

// failure gives the error of a run its kind by the exit status.
func (t *tool) failure(op, subject string, err error) error {
	var exit *hostexec.Exit
	if !errors.As(err, &exit) || exit.Signal != 0 {
		return failed(op, subject, err)
	}
	number := syscall.Errno(exit.Code)
	kind, ok := kinds[number]
	if !ok {
		kind = errs.Internal
	}
	e := errs.New(kind, op, subject, "%w", exit)
	switch number {
	case syscall.EPERM, syscall.EACCES:
		e = e.WithHint("is the key that of client.%s, and may it use the pool %s? \"ceph auth get client.%s\" tells", t.user, t.where(), t.user)
	case syscall.ETIMEDOUT:
		e = e.WithHint("are the monitors that %s names running and reachable?", t.conf)
	case syscall.ESHUTDOWN:
		e = e.WithHint("this host's client is on the cluster's blocklist: \"ceph osd blocklist ls\"")
	}
	return e
}

// image is what rbd says of one.
type image struct {
	ID        string   `json:"id"`
	Size      int64    `json:"size"`
	Snapshots int      `json:"snapshot_count"`
	Features  []string `json:"features"`
	Flags     []string `json:"flags"`
}

func (t *tool) info(ctx context.Context, name string) (i image, err error) {
	err = t.query(ctx, "image.info", name, call{words: words("info"), image: name}, &i)
	return i, err
}

// words are a command and its operands.
func words(w ...string) (v []hostexec.Value) {
	for _, s := range w {
		v = append(v, text(s))
	}
	return v
}

// watcher is a client that has an image open.
type watcher struct {
	Address string `json:"address"`
	Client  int64  `json:"client"`
}

func (t *tool) watchers(ctx context.Context, op, name string) ([]watcher, error) {
	var s struct {
		Watchers []watcher `json:"watchers"`
	}
	err := t.query(ctx, op, name, call{words: words("status"), image: name}, &s)
	return s.Watchers, err
}

func quiet() hostexec.Option { return hostexec.Flag("--no-progress") }

// do runs a command that changes name.
func (t *tool) do(ctx context.Context, op, name string, w []hostexec.Value, options ...hostexec.Option) error {
	_, err := t.rbd(ctx, op, name, call{words: w, image: name, options: options})
	return t.full(ctx, op, name, err)
}

// rename gives the image from the name to, which must be free: errs.Exists.
func (t *tool) rename(ctx context.Context, op, from, to string) error {
	err := t.do(ctx, op, from, words("rename"), t.dest(to)...)
	if !errors.Is(err, errs.Exists) {
		return err
	}
	half, lerr := t.halfRenamed(ctx, op, from, to)
	switch {
	case lerr != nil:
		return lerr
	case half == "":
		return err
	case half == to: // the new name leads to the image, the list has the old one; or it leads nowhere
		if err := t.forgetName(ctx, op, to); err != nil {
			return err
		}
		return t.do(ctx, op, from, words("rename"), t.dest(to)...)
	}
	return t.forgetName(ctx, op, from) // the list has the new one
}

// halfRenamed returns which of an image's two names is the one too many after a
// rename that was killed, and "" if they lead to two images. An rbd that renames
// makes the object that leads from the new name to the image, renames the entry
// in the pool's list, and removes the old name's object (librbd, RenameRequest).
// Where the image was removed after the first of these, the new name leads to
// nothing and the list does not have it.
func (t *tool) halfRenamed(ctx context.Context, op, from, to string) (string, error) {
	i, err := t.info(ctx, from)
	if err != nil {
		return "", ignoring(errs.NotFound, err)
	}
	j, err := t.info(ctx, to)
	if err == nil && j.ID != i.ID {
		return "", nil
	}
	nowhere := errors.Is(err, errs.NotFound)
	if err != nil && !nowhere {
		return "", err
	}
	all, err := t.names(ctx, op)
	switch {
	case err != nil:
		return "", err
	case !all[to]:
		return to, nil
	case nowhere: // somebody makes or removes an image of that name
		return "", nil
	}
	return from, nil
}

// forgetName removes the object that leads from an image's name to the image,
// and nothing of the image.
func (t *tool) forgetName(ctx context.Context, op, name string) error {
	_, err := t.rados(ctx, op, name, false, "rm", "rbd_id."+name)
	return err
}

// dest are the options that name a second image.
func (t *tool) dest(name string) []hostexec.Option {
	o := []hostexec.Option{hostexec.Joined("--dest-pool", text(t.ceph)), hostexec.Joined("--dest", text(name))}
	if t.namespace != "" {
		o = append(o, hostexec.Joined("--dest-namespace", text(t.namespace)))
	}
	return o
}

// size is the option that gives a size in bytes.
func size(n int64) hostexec.Option {
	return hostexec.Joined("--size", text(strconv.FormatInt(n, 10)+"B"))
}

func (t *tool) create(ctx context.Context, op, name string, n int64) error {
	return t.do(ctx, op, name, words("create"), size(n), features())
}

func features() hostexec.Option {
	return hostexec.Joined("--image-feature", hostexec.Word("layering,exclusive-lock,object-map,fast-diff"))
}

// removeImage removes an image; a missing one is no error.
func (t *tool) removeImage(ctx context.Context, op, name string) error {
	return ignoring(errs.NotFound, t.do(ctx, op, name, words("rm"), quiet()))
}

func ignoring(kind errs.Kind, err error) error {
	if errors.Is(err, kind) {
		return nil
	}
	return err
}
