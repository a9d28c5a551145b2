// Package config reads the daemon's configuration: a strict YAML file over
// defaults that depend on who runs the daemon. It refuses unknown fields, and
// it never holds a secret itself, only names of files that do.
package config

import (
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/goccy/go-yaml"

	"github.com/tarn-storage/tarn/diskfmt"
	"github.com/tarn-storage/tarn/errs"
)

// Config is the whole configuration. A zero field is the default.
type Config struct {
	StateDir    string   `yaml:"state_dir"`
	Socket      string   `yaml:"socket"`
	Group       string   `yaml:"group"`        // may use the socket, if it exists
	DefaultPool string   `yaml:"default_pool"` // of requests that name none
	WorkerUser  string   `yaml:"worker_user"`  // of the confined worker; only root can change to it
	Database    Database `yaml:"database"`
	// KeepOperations is for how long operations that ended, with their request
	// ids, and events are kept.
	KeepOperations Age     `yaml:"keep_operations"`
	Listen         *Listen `yaml:"listen"` // nil: the unix socket only
	Log            Log     `yaml:"log"`
	// ImageFormats are what images may be imported as; none is every format.
	ImageFormats []string `yaml:"image_formats"`
	Sources      Sources  `yaml:"sources"`
}

// Sources says from where images are fetched. Public addresses need no leave.
type Sources struct {
	Allow      []netip.Prefix `yaml:"allow"`      // other addresses that may be reached
	NAT64      []netip.Prefix `yaml:"nat64"`      // prefixes of the network's own that carry IPv4 addresses
	PlainHTTP  []netip.Prefix `yaml:"plain_http"` // where Glance and Keystone may be asked without TLS
	CAFile     string         `yaml:"ca_file"`    // certificates to trust, in PEM, instead of the system's
	CloudsFile string         `yaml:"clouds_file"`
}

// Database says where records are kept. DSNFile holds the connection string of
// a PostgreSQL server and is read at start.
type Database struct {
	Engine  string `yaml:"engine"` // sqlite, postgres
	DSNFile string `yaml:"dsn_file"`
}

// Listen is a TCP address with mutual TLS. All files are PEM.
type Listen struct {
	Address  string `yaml:"address"` // HOST:PORT
	Cert     string `yaml:"cert"`
	Key      string `yaml:"key"`
	ClientCA string `yaml:"client_ca"` // who may sign clients' certificates
}

// Log says what the daemon writes to standard error.
type Log struct {
	Level  string `yaml:"level"`  // debug, info, warn, error
	Format string `yaml:"format"` // json, text
}

// Places are the parts of the environment that defaults depend on.
type Places struct {
	Root       bool
	Home       string
	StateHome  string // XDG_STATE_HOME
	RuntimeDir string // XDG_RUNTIME_DIR
}

// Environment returns the places of this process.
func Environment() Places {
	return Places{Root: os.Geteuid() == 0, Home: os.Getenv("HOME"), StateHome: os.Getenv("XDG_STATE_HOME"), RuntimeDir: os.Getenv("XDG_RUNTIME_DIR")}
}

// Read reads the file at path. A syntax error, an unknown field or a value
// out of its range is errs.Invalid with the line.
func Read(path string) (Config, error) {
	f, err := os.Open(path)
	if err != nil {
		kind := errs.Invalid
		if errors.Is(err, fs.ErrNotExist) {
			kind = errs.NotFound
		}
		return Config{}, errs.New(kind, "config.read", path, "the configuration cannot be read: %w", err)
	}
	defer f.Close()
	c, err := parse(f)
	return c, errs.Wrap(err, "config.read", path)
}

func parse(r io.Reader) (Config, error) {
	var c Config
	err := yaml.NewDecoder(r, yaml.DisallowUnknownField()).Decode(&c)
	if err != nil && !errors.Is(err, io.EOF) { // an empty file says nothing
		return Config{}, errs.New(errs.Invalid, "config.read", "", "%s", strings.TrimSpace(yaml.FormatError(err, false, false)))
	}
	return c, c.validate()
}

func (c Config) validate() error {
	bad := func(format string, args ...any) error {
		return errs.New(errs.Invalid, "config.read", "", format, args...)
	}
	for _, p := range []struct{ name, path string }{{"state_dir", c.StateDir}, {"socket", c.Socket}, {"database.dsn_file", c.Database.DSNFile},
		{"sources.ca_file", c.Sources.CAFile}, {"sources.clouds_file", c.Sources.CloudsFile}} {
		if p.path != "" && !filepath.IsAbs(p.path) {
			return bad("%s: %q is not an absolute path", p.name, p.path)
		}
	}
	for _, f := range c.ImageFormats {
		if _, err := diskfmt.ParseImageFormat(f); err != nil {
			return bad("image_formats: %w", err)
		}
	}
	switch c.Database.Engine {
	case "", "sqlite":
		if c.Database.DSNFile != "" {
			return bad("database.dsn_file is for the engine postgres")
		}
	case "postgres":
		if c.Database.DSNFile == "" {
			return bad("database.dsn_file is missing: the file that holds the connection string")
		}
	default:
		return bad("database.engine: %q is neither sqlite nor postgres", c.Database.Engine)
	}
	if _, err := c.Log.level(); err != nil {
		return bad("log.level: %q is not one of debug, info, warn, error", c.Log.Level)
	}
	if f := c.Log.Format; f != "" && f != "json" && f != "text" {
		return bad("log.format: %q is neither json nor text", f)
	}
	return c.Listen.validate()
}

func (l *Listen) validate() error {
	if l == nil {
		return nil
	}
	if _, _, err := net.SplitHostPort(l.Address); err != nil {
		return errs.New(errs.Invalid, "config.read", "", "listen.address: %q is not HOST:PORT", l.Address)
	}
	for _, p := range []struct{ name, path string }{{"cert", l.Cert}, {"key", l.Key}, {"client_ca", l.ClientCA}} {
		if !filepath.IsAbs(p.path) {
			return errs.New(errs.Invalid, "config.read", "", "listen.%s: %q is not an absolute path", p.name, p.path).
				WithHint("TCP is served with mutual TLS only: cert, key and client_ca are needed")
		}
	}
	return nil
}

// WithDefaults returns c with every place filled in: the system's for root,
// else the user's.
func (c Config) WithDefaults(p Places) (Config, error) {
	switch {
	case c.StateDir != "":
	case p.Root:
		c.StateDir = "/var/lib/tarn"
	case p.StateHome != "":
		c.StateDir = filepath.Join(p.StateHome, "tarn")
	case p.Home != "":
		c.StateDir = filepath.Join(p.Home, ".local", "state", "tarn")
	default:
		return c, errs.New(errs.Invalid, "config", "", "there is no place for the state: neither XDG_STATE_HOME nor HOME is set").WithHint("give --state-dir")
	}
	switch {
	case c.Socket != "":
	case p.Root:
		c.Socket = "/run/tarn/tarn.sock"
	case p.RuntimeDir != "":
		c.Socket = filepath.Join(p.RuntimeDir, "tarn", "tarn.sock")
	default:
		c.Socket = filepath.Join(c.StateDir, "tarn.sock")
	}
	if c.Group == "" {
		c.Group = "tarn"
	}
	if c.Database.Engine == "" {
		c.Database.Engine = "sqlite"
	}
	if c.KeepOperations == 0 {
		c.KeepOperations = Age(30 * 24 * time.Hour)
	}
	return c, nil
}

func (l Log) level() (slog.Level, error) {
	var level slog.Level
	if l.Level == "" {
		return slog.LevelInfo, nil
	}
	return level, level.UnmarshalText([]byte(l.Level))
}

// Logger returns the logger that c asks for, on w.
func (l Log) Logger(w io.Writer) *slog.Logger {
	level, err := l.level()
	if err != nil {
		level = slog.LevelInfo
	}
	o := &slog.HandlerOptions{Level: level}
	if l.Format == "text" {
		return slog.New(slog.NewTextHandler(w, o))
	}
	return slog.New(slog.NewJSONHandler(w, o))
}
