package hostexec

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"slices"
	"syscall"
	"testing"

	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/faults"
)

// startSelf runs the worker of this test binary and returns what it saw.
func startSelf(t *testing.T, s Self) (call, *Process) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	s.Mode, s.Files = "worker", []*os.File{w}
	p, err := StartSelf(t.Context(), s)
	w.Close()
	if err != nil {
		t.Fatal(err)
	}
	var c call
	if err := json.NewDecoder(r).Decode(&c); err != nil {
		t.Fatalf("the worker's record: %v", err)
	}
	if out, err := p.Wait(); err != nil {
		t.Fatalf("the worker: %v, %q", err, out.Stderr)
	}
	if err := p.Kill(); err != nil {
		t.Errorf("Kill of an ended process: %v", err)
	}
	return c, p
}

func TestStartSelf(t *testing.T) {
	c, p := startSelf(t, Self{})
	if want := []string{"/proc/self/exe", "worker"}; !slices.Equal(words(c), want) {
		t.Errorf("argv: got %q, want %q", words(c), want)
	}
	if want := environment(); !slices.Equal(c.Env, want) {
		t.Errorf("environment: got %q, want %q", c.Env, want)
	}
	if p.Isolated() || c.UID != os.Getuid() {
		t.Errorf("isolated %v, uid %d, want false and %d", p.Isolated(), c.UID, os.Getuid())
	}
}

func TestStartSelfIsolatesWhereItMay(t *testing.T) {
	c, p := startSelf(t, Self{Isolate: true})
	ours, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	if p.Isolated() != (c.Net != ours) {
		t.Errorf("Isolated is %v, but the namespaces are %s and %s", p.Isolated(), c.Net, ours)
	}
	if os.Getuid() == 0 && !p.Isolated() {
		t.Error("root's worker shares the host's network namespace")
	}
}

func TestStartSelfAsAnotherUser(t *testing.T) {
	if os.Getuid() != 0 {
		_, err := StartSelf(t.Context(), Self{Mode: "worker", User: &User{65534, 65534}, Isolate: true})
		if err == nil {
			t.Error("an unprivileged process became another user")
		}
		return
	}
	if c, _ := startSelf(t, Self{User: &User{65534, 65534}, Isolate: true}); c.UID != 65534 || len(c.Groups) != 0 && !slices.Equal(c.Groups, []int{65534}) {
		t.Errorf("uid %d, groups %v, want 65534 and no others", c.UID, c.Groups)
	}
}

func TestStartSelfCrashedAfterwardsLeavesNoProcess(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	inject := &counter{after: faults.ErrCrash}
	remove := faults.Install(inject)
	p, err := StartSelf(t.Context(), Self{Mode: "worker", Files: []*os.File{w}})
	remove()
	w.Close()
	if p != nil || !errors.Is(err, faults.ErrCrash) {
		t.Errorf("got %v, %v, want the crash", p, err)
	}
	if want := []faults.Effect{{Kind: faults.Tool, Name: "worker"}}; !slices.Equal(inject.effects, want) {
		t.Errorf("effects %v, want %v", inject.effects, want)
	}
}

func TestKillEndsAProcess(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	p, err := StartSelf(t.Context(), Self{Mode: "hang", Files: []*os.File{r}})
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Kill(); err != nil {
		t.Fatal(err)
	}
	var exit *Exit
	if _, err := p.Wait(); !errors.As(err, &exit) || exit.Signal != syscall.SIGKILL || exit.Code != -1 {
		t.Errorf("got %v, want an Exit by SIGKILL", err)
	}
}

func TestContextEndsAProcess(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	ctx, cancel := context.WithCancel(t.Context())
	p, err := StartSelf(ctx, Self{Mode: "hang", Files: []*os.File{r}})
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	if _, err := p.Wait(); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want context.Canceled", err)
	}
	if _, err := StartSelf(ctx, Self{Mode: "hang"}); !errors.Is(err, errs.Cancelled) {
		t.Errorf("on an ended context: got %v, want errs.Cancelled", err)
	}
}
