package config

import (
	"bytes"
	"errors"
	"net/netip"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

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
	if diff := cmp.Diff(want, got, cmpopts.EquateComparable(netip.Prefix{})); diff != "" {
		t.Errorf("the sample differs from root's defaults (-defaults +sample):\n%s", diff)
	}
}

// TestSampleIsComplete reads the sample with every optional line in effect.
func TestSampleIsComplete(t *testing.T) {
	text, err := os.ReadFile(sample)
	if err != nil {
		t.Fatal(err)
	}
	all := regexp.MustCompile(`(?m)^( *)# ?( *[a-z0-9_]+:( |$))`).ReplaceAll(text, []byte("$1$2"))
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

		ImageFormats: []string{"raw", "qcow2"},
		Sources: Sources{
			Allow: []netip.Prefix{netip.MustParsePrefix("10.20.0.0/16"), netip.MustParsePrefix("fd00:20::/64")}, NAT64: []netip.Prefix{netip.MustParsePrefix("2001:db8:64::/96")},
			PlainHTTP: []netip.Prefix{netip.MustParsePrefix("10.20.0.5/32")}, CAFile: "/etc/tarn/ca.pem", CloudsFile: "/etc/tarn/clouds.yaml",
		},
	}
	if diff := cmp.Diff(want, got, cmpopts.EquateComparable(netip.Prefix{})); diff != "" {
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
		{"image_formats: [raw, qed]", "\"qed\" is no image format"},
		{"sources: {allow: [10.0.0.1]}", "\"10.0.0.1\"): no '/'"},
		{"sources: {nat64: [here/96]}", "unable to parse IP"},
		{"sources: {ca_file: ca.pem}", "sources.ca_file"},
		{"sources: {clouds_file: clouds.yaml}", "not an absolute path"},
		{"sources: {proxy: x}", "unknown field"},
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
