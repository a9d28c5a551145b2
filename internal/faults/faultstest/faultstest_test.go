package faultstest_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/tarn-storage/tarn/internal/faults"
	"github.com/tarn-storage/tarn/internal/faults/faultstest"
)

// effects performs three effects and returns what each returned and which were
// performed.
func effects() (errs []error, performed string) {
	for _, e := range []struct {
		kind faults.Kind
		name string
	}{{faults.Write, "a"}, {faults.Sync, "b"}, {faults.Write, "c"}} {
		errs = append(errs, faults.Do(e.kind, e.name, func() error { performed += e.name; return nil }))
	}
	return errs, performed
}

func TestInjectors(t *testing.T) {
	nospc := error(syscall.ENOSPC)
	crash := faults.ErrCrash
	for _, c := range []struct {
		name      string
		i         faults.Injector
		want      [3]error
		performed string
	}{
		{"counter", &faultstest.Counter{}, [3]error{}, "abc"},
		{"crash before 1", faultstest.CrashAt(1, faultstest.Before), [3]error{nil, crash, crash}, "a"},
		{"crash after 1", faultstest.CrashAt(1, faultstest.After), [3]error{nil, crash, crash}, "ab"},
		{"crash past the end", faultstest.CrashAt(3, faultstest.Before), [3]error{}, "abc"},
		{"one failure", faultstest.FailAt(0, nospc, false), [3]error{nospc, nil, nil}, "bc"},
		{"lasting failure", faultstest.FailAt(1, nospc, true), [3]error{nil, nospc, nospc}, "a"},
		{"second write fails", faultstest.FailAt(1, nospc, false, faults.Write), [3]error{nil, nil, nospc}, "ab"},
		{"sync fails", faultstest.FailSyncAt(0, syscall.EIO), [3]error{nil, syscall.EIO, nil}, "ac"},
	} {
		remove := faults.Install(c.i)
		got, performed := effects()
		remove()
		if performed != c.performed {
			t.Errorf("%s: performed %q, want %q", c.name, performed, c.performed)
		}
		for i := range got {
			if !errors.Is(got[i], c.want[i]) {
				t.Errorf("%s: effect %d returned %v, want %v", c.name, i, got[i], c.want[i])
			}
		}
	}
}

func TestRetriedSync(t *testing.T) {
	f := faultstest.FailSyncAt(0, syscall.EIO)
	defer faults.Install(f)()
	effects()
	if f.Retried() {
		t.Error("Retried() = true before the sync was asked for again")
	}
	effects()
	if !f.Retried() {
		t.Error("Retried() = false after the sync was asked for again")
	}
}

// A program that writes a file by way of a temporary one. Its recovery removes
// the temporary file, unless it is told to forget that.
type program struct{ dir, forget string }

func (p program) path(name string) string { return filepath.Join(p.dir, name) }

func (p program) run() error {
	err := faults.Do(faults.Create, "tmp", func() error { return os.WriteFile(p.path("tmp"), []byte("x"), 0o600) })
	if err == nil {
		err = faults.Do(faults.Rename, "file", func() error { return os.Rename(p.path("tmp"), p.path("file")) })
	}
	return err
}

func (p program) recover() error {
	switch _, err := os.Stat(p.path("tmp")); {
	case p.forget == "remove":
		return nil
	case p.forget == "looking" || err == nil:
		return faults.Do(faults.Unlink, "tmp", func() error { os.Remove(p.path("tmp")); return nil })
	}
	return nil
}

func (p program) check(t *testing.T) {
	if _, err := os.Stat(p.path("tmp")); err == nil {
		t.Error("the temporary file is left")
	}
}

func exhaustProgram(t *testing.T, least int, forget string) {
	faultstest.Exhaust(t, faultstest.Options{MinEffects: least},
		func(t *testing.T) program { return program{t.TempDir(), forget} },
		program.run, program.recover, func(t *testing.T, p program) { p.check(t) })
}

func TestExhaust(t *testing.T) {
	forget, least := os.Getenv("FAULTSTEST_FORGET"), 2
	if forget == "few" {
		least = 3
	}
	exhaustProgram(t, least, forget)
}

// The harness itself must fail where a recovery does not do its work.
func TestExhaustFinds(t *testing.T) {
	for _, c := range []struct{ forget, want string }{
		{"remove", "crash after effect 0 (create tmp): the check failed"},
		{"looking", "the second recovery had 1 effects, want none"},
		{"few", "the operation has 2 effects, want at least 3"},
	} {
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=TestExhaust$")
		cmd.Env = append(os.Environ(), "FAULTSTEST_FORGET="+c.forget)
		out, err := cmd.CombinedOutput()
		if err == nil || !strings.Contains(string(out), c.want) {
			t.Errorf("with the recovery that forgets %s: %v, output lacks %q:\n%s", c.forget, err, c.want, out)
		}
	}
}

func TestErrors(t *testing.T) {
	faultstest.Errors(t, faultstest.Options{MinEffects: 2}, syscall.ENOSPC, true,
		func(t *testing.T) program { return program{t.TempDir(), ""} },
		func(p program) error { return errors.Join(p.run(), os.RemoveAll(p.path("tmp"))) },
		func(t *testing.T, p program, got error, f *faultstest.Fail) {
			p.check(t)
			if failed := len(f.Failed()) > 0; failed != errors.Is(got, syscall.ENOSPC) {
				t.Errorf("run returned %v, faults injected: %v", got, failed)
			}
		})
}
