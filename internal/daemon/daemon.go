// Package daemon wires the daemon together: configuration, store, engine, API,
// sockets and signals. It refuses to hold any behaviour of its own beyond
// starting and stopping these in order.
package daemon

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"log/slog"
	"net"
	"os"
	"os/user"
	"strconv"
	"strings"
	"time"

	"github.com/tarn-storage/tarn/api"
	"github.com/tarn-storage/tarn/diskfmt"
	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/config"
	"github.com/tarn-storage/tarn/internal/engine"
	"github.com/tarn-storage/tarn/internal/fetch"
	"github.com/tarn-storage/tarn/internal/hostexec"
	"github.com/tarn-storage/tarn/internal/httpapi"
	"github.com/tarn-storage/tarn/internal/ingest"
	"github.com/tarn-storage/tarn/internal/pool/all"
	"github.com/tarn-storage/tarn/internal/store"
	"github.com/tarn-storage/tarn/internal/store/postgres"
	"github.com/tarn-storage/tarn/internal/store/sqlite"
)

// grace is how long calls may go on after the daemon was asked to stop.
const grace = 10 * time.Second

// Daemon is a daemon that serves.
type Daemon struct {
	log    *slog.Logger
	store  *store.Store
	engine *engine.Engine
	server *httpapi.Server
	socket *socket
	failed chan error // of a listener
}

// Start starts a daemon. All defaults of c must be filled in. When it returns
// the socket answers and everything an earlier run left is being finished.
func Start(ctx context.Context, c config.Config, log *slog.Logger) (*Daemon, error) {
	d := &Daemon{log: log, failed: make(chan error, 2)}
	if err := d.start(ctx, c); err != nil {
		if left := d.Stop(context.WithoutCancel(ctx)); left != nil {
			log.Error("giving up the start", "error", left)
		}
		return nil, err
	}
	return d, nil
}

func (d *Daemon) start(ctx context.Context, c config.Config) (err error) {
	if err := os.MkdirAll(c.StateDir, 0o700); err != nil {
		return errs.New(errs.Unavailable, "daemon.start", c.StateDir, "the state directory cannot be made: %w", err)
	}
	b := &ballast{dir: c.StateDir}
	if d.store, err = openStore(ctx, c, b); err != nil {
		return err
	}
	if d.engine, err = startEngine(ctx, c, d.store, b, d.log); err != nil {
		return err
	}
	if d.server, err = httpapi.New(httpapi.Config{Engine: d.engine, Log: d.log, Clock: time.Now}); err != nil {
		return err
	}
	if d.socket, err = listen(c.Socket, c.Group); err != nil {
		return err
	}
	d.serve(httpapi.Listener{UnixListener: d.socket.UnixListener})
	if c.Listen != nil {
		l, err := listenTLS(*c.Listen)
		if err != nil {
			return err
		}
		d.serve(l)
	}
	return nil
}

func (d *Daemon) serve(l net.Listener) {
	d.log.Info("listening", "address", l.Addr().String())
	go func() {
		if err := d.server.Serve(l); err != nil {
			d.failed <- err
		}
	}()
}

// Failed delivers the error of a listener that broke.
func (d *Daemon) Failed() <-chan error { return d.failed }

// Stop ends the daemon and closes what was opened, in the opposite order:
// calls may finish, operations are left to the next start.
func (d *Daemon) Stop(ctx context.Context) error {
	if d.server != nil {
		closing, cancel := context.WithTimeout(ctx, grace)
		d.server.Shutdown(closing)
		cancel()
	}
	var all []error
	if d.socket != nil {
		all = append(all, d.socket.remove())
	}
	if d.engine != nil {
		all = append(all, d.engine.Close(ctx))
	}
	if d.store != nil {
		all = append(all, d.store.Close())
	}
	return errors.Join(all...)
}

func openStore(ctx context.Context, c config.Config, b *ballast) (*store.Store, error) {
	if c.Database.Engine != "postgres" {
		return sqlite.Open(ctx, sqlite.Options{Dir: c.StateDir, OnFull: b.Release})
	}
	dsn, err := os.ReadFile(c.Database.DSNFile)
	if err != nil {
		return nil, errs.New(errs.Invalid, "daemon.start", c.Database.DSNFile, "the file with the connection string cannot be read: %w", err)
	}
	return postgres.Open(ctx, postgres.Options{DSN: strings.TrimSpace(string(dsn))})
}

func startEngine(ctx context.Context, c config.Config, s *store.Store, b *ballast, log *slog.Logger) (*engine.Engine, error) {
	host, err := engine.ThisHost()
	if err != nil {
		return nil, err
	}
	worker, err := workerUser(c.WorkerUser)
	if err != nil {
		return nil, err
	}
	from, clouds, err := sources(c.Sources)
	if err != nil {
		return nil, err
	}
	formats := make([]diskfmt.Format, len(c.ImageFormats))
	for i, f := range c.ImageFormats {
		formats[i] = diskfmt.Format(f)
	}
	return engine.New(ctx, engine.Config{
		Store: s, Fetch: from, Clouds: clouds, Formats: formats, Host: host, Types: all.Types(), Ingest: ingest.Config{User: worker}, DefaultPool: c.DefaultPool,
		Clock: time.Now, Log: log, Version: api.Build().Version, Ballast: b, StateDir: c.StateDir,
		KeepOperations: time.Duration(c.KeepOperations),
	})
}

// sources reads the files that say whom to trust when images are fetched, and
// who asks Glance for them.
func sources(c config.Sources) (fetch.Config, map[string]fetch.Cloud, error) {
	from := fetch.Config{Allow: c.Allow, NAT64: c.NAT64, PlainHTTP: c.PlainHTTP}
	if c.CAFile != "" {
		b, err := os.ReadFile(c.CAFile)
		if err != nil {
			return from, nil, errs.New(errs.Invalid, "daemon.start", c.CAFile, "sources.ca_file cannot be read: %w", err)
		}
		from.Roots = x509.NewCertPool()
		if !from.Roots.AppendCertsFromPEM(b) {
			return from, nil, errs.New(errs.Invalid, "daemon.start", c.CAFile, "sources.ca_file holds no certificate in PEM")
		}
	}
	if c.CloudsFile == "" {
		return from, nil, nil
	}
	b, err := os.ReadFile(c.CloudsFile)
	if err != nil {
		return from, nil, errs.New(errs.Invalid, "daemon.start", c.CloudsFile, "sources.clouds_file cannot be read: %w", err)
	}
	clouds, err := fetch.ParseClouds(b)
	return from, clouds, errs.Wrap(err, "daemon.start", c.CloudsFile)
}

// workerUser looks up whom the confined worker runs as; nil leaves the choice
// to the gate.
func workerUser(name string) (*hostexec.User, error) {
	if name == "" {
		return nil, nil
	}
	u, err := user.Lookup(name)
	if err != nil {
		return nil, errs.New(errs.Invalid, "daemon.start", name, "worker_user: there is no such user: %w", err)
	}
	uid, uidErr := strconv.ParseUint(u.Uid, 10, 32)
	gid, gidErr := strconv.ParseUint(u.Gid, 10, 32)
	if uidErr != nil || gidErr != nil {
		return nil, errs.New(errs.Invalid, "daemon.start", name, "worker_user: its ids are no numbers")
	}
	return &hostexec.User{UID: uint32(uid), GID: uint32(gid)}, nil
}

// listenTLS listens on TCP and lets only clients with a certificate in.
func listenTLS(c config.Listen) (net.Listener, error) {
	const op = "daemon.listen"
	cert, err := tls.LoadX509KeyPair(c.Cert, c.Key)
	if err != nil {
		return nil, errs.New(errs.Invalid, op, c.Cert, "the server's certificate cannot be used: %w", err)
	}
	pem, err := os.ReadFile(c.ClientCA)
	if err != nil {
		return nil, errs.New(errs.Invalid, op, c.ClientCA, "the clients' certificate authorities cannot be read: %w", err)
	}
	clients := x509.NewCertPool()
	if !clients.AppendCertsFromPEM(pem) {
		return nil, errs.New(errs.Invalid, op, c.ClientCA, "the file holds no PEM certificate")
	}
	l, err := net.Listen("tcp", c.Address)
	if err != nil {
		return nil, errs.New(errs.Unavailable, op, c.Address, "the address cannot be listened on: %w", err)
	}
	return tls.NewListener(l, &tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{cert},
		ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: clients,
	}), nil
}
