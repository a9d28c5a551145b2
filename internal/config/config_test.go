package config

import (
	"bytes"
	"errors"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/tarn-storage/tarn/errs"
)

// sample is the file that packages install.
const sample = "../../packaging/tarnd.yaml"

func TestSampleShowsTheDefaults(t *testing.T) {
	got, err := Read(sample)
	if err != nil {
		t.Fatal(err)
	}
	want, err := Config{Log: Log{Level: "info", Format: "json"}}.WithDefaults(Places{Root: true})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("the sample differs from root's defaults (-defaults +sample):\n%s", diff)
	}
}

// TestSampleIsComplete reads the sample with every optional line in effect.
func TestSampleIsComplete(t *testing.T) {
	text, err := os.ReadFile(sample)
	if err != nil {
		t.Fatal(err)
	}
	all := regexp.MustCompile(`(?m)^( *)# ?( *[a-z_]+:( |$))`).ReplaceAll(text, []byte("$1$2"))
	all = bytes.ReplaceAll(all, []byte("engine: sqlite "), []byte("engine: postgres "))
	got, err := parse(bytes.NewReader(all))
	if err != nil {
		t.Fatalf("%v in:\n%s", err, all)
	}
	want := Config{
		StateDir: "/var/lib/tarn", Socket: "/run/tarn/tarn.sock", Group: "tarn", DefaultPool: "fast", WorkerUser: "tarn-worker",
		Database: Database{Engine: "postgres", DSNFile: "/etc/tarn/dsn"}, KeepOperations: Age(30 * 24 * time.Hour),
		Listen: &Listen{Address: "0.0.0.0:7443", Cert: "/etc/tarn/tls/server.crt", Key: "/etc/tarn/tls/server.key", ClientCA: "/etc/tarn/tls/clients.crt"},
		Log:    Log{Level: "info", Format: "json"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("the sample with all lines (-want +got):\n%s", diff)
	}
}

func TestRefusals(t *testing.T) {
	for _, row := range []struct{ text, want string }{
		{"state_dri: /x", "[1:1] unknown field"},
		{"log:\n  level: info\n  colour: true", "[3:3] unknown field"},
		{"state_dir: [1", "[1:"},
		{"state_dir: here", "not an absolute path"},
		{"socket: tarn.sock", "not an absolute path"},
		{"database: {engine: mysql}", "neither sqlite nor postgres"},
		{"database: {engine: postgres}", "dsn_file is missing"},
		{"database: {dsn_file: /x}", "for the engine postgres"},
		{"log: {level: loud}", "log.level"},
		{"keep_operations: 30", "not an hour or more"},
		{"keep_operations: 59m", "not an hour or more"},
		{"keep_operations: 99999d", "not an hour or more"},
		{"keep_operations: -1d", "not an hour or more"},
		{"log: {format: xml}", "log.format"},
		{"listen: {address: 'here'}", "not HOST:PORT"},
		{"listen: {address: ':1', cert: /a, key: /b}", "listen.client_ca"},
	} {
		_, err := parse(strings.NewReader(row.text))
		if !errors.Is(err, errs.Invalid) || !strings.Contains(err.Error(), row.want) {
			t.Errorf("%q: got %v, want errs.Invalid with %q", row.text, err, row.want)
		}
	}
	if _, err := Read("/nonexistent/tarnd.yaml"); !errors.Is(err, errs.NotFound) {
		t.Errorf("a missing file: got %v, want errs.NotFound", err)
	}
}

func TestDefaults(t *testing.T) {
	for _, row := range []struct {
		name             string
		places           Places
		stateDir, socket string
		given            Config
	}{
		{"root", Places{Root: true, Home: "/root"}, "/var/lib/tarn", "/run/tarn/tarn.sock", Config{}},
		{"user", Places{Home: "/home/u", RuntimeDir: "/run/user/7"}, "/home/u/.local/state/tarn", "/run/user/7/tarn/tarn.sock", Config{}},
		{"XDG", Places{Home: "/home/u", StateHome: "/s"}, "/s/tarn", "/s/tarn/tarn.sock", Config{}},
		{"given", Places{Root: true}, "/a", "/b", Config{StateDir: "/a", Socket: "/b"}},
	} {
		got, err := row.given.WithDefaults(row.places)
		if err != nil || got.StateDir != row.stateDir || got.Socket != row.socket {
			t.Errorf("%s: got %q, %q, %v, want %q and %q", row.name, got.StateDir, got.Socket, err, row.stateDir, row.socket)
		}
	}
	if _, err := (Config{}).WithDefaults(Places{}); !errors.Is(err, errs.Invalid) {
		t.Errorf("nowhere to go: got %v, want errs.Invalid", err)
	}
}
