package cli_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/tarn-storage/tarn/api"
	"github.com/tarn-storage/tarn/client"
	"github.com/tarn-storage/tarn/internal/cli"
)

// watchPool runs "tarn pool list --watch" with out as its output. ready tells that
// the pool was shown; then it is stopped, and when last tells that this was shown
// too, the command is interrupted.
func watchPool(t *testing.T, out *os.File, ready, last func(), args ...string) {
	t.Helper()
	socket, c := watched(t, func([]byte) {})
	makePool(t, c)
	ctx, interrupt := context.WithCancel(t.Context())
	defer interrupt()
	ended := make(chan int, 1)
	go func() {
		defer out.Close()
		ended <- cli.Run(ctx, append([]string{"--socket", socket, "pool", "list", "--watch", "--interval", "100ms"}, args...), cli.Streams{In: os.Stdin, Out: out, Err: os.Stderr})
	}()
	ready()
	stopPool(t, c)
	last()
	interrupt()
	if status := <-ended; status != 0 {
		t.Errorf("interrupted, it ended with status %d, want 0", status)
	}
}

func stopPool(t *testing.T, c *client.Client) {
	t.Helper()
	if out, err := c.PoolStop(t.Context(), api.Options{Wait: 60e9}, "p"); err != nil || out.Operation.State != "done" {
		t.Fatalf("pool stop: %+v, %v", out.Operation, err)
	}
}

func TestPoolWatchLines(t *testing.T) {
	for name, c := range map[string]struct {
		args   []string
		first  string // of the output, if not the pool
		active func(line string) (state string)
	}{
		"lines": {first: "TIME", active: func(line string) string {
			words := strings.Fields(line) // date, time, name, state
			if len(words) < 4 || words[2] != "p" {
				t.Errorf("the line %q is not about the pool", line)
				return ""
			}
			return words[3]
		}},
		"JSON": {args: []string{"-o", "json"}, active: func(line string) string {
			var l api.List[api.Pool]
			if err := json.Unmarshal([]byte(line), &l); err != nil || len(l.Items) != 1 {
				t.Errorf("the line %q is no list of one pool: %v", line, err)
				return ""
			}
			return l.Items[0].State
		}},
	} {
		t.Run(name, func(t *testing.T) {
			r, w, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			lines := bufio.NewScanner(r)
			until := func(state string) {
				for lines.Scan() {
					if c.active(lines.Text()) == state {
						return
					}
				}
				t.Errorf("the output ended before the pool was %s", state)
			}
			ready := func() {
				if c.first != "" && (!lines.Scan() || !strings.HasPrefix(lines.Text(), c.first)) {
					t.Errorf("the output begins with %q, want %s", lines.Text(), c.first)
				}
				until("active")
			}
			watchPool(t, w, ready, func() { until("inactive") }, c.args...)
		})
	}
}

// TestPoolWatchOnTerminal has a terminal of few columns: the table is written over
// the one before.
func TestPoolWatchOnTerminal(t *testing.T) {
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skipf("this host gives no terminals: %v", err)
	}
	defer master.Close()
	fd := int(master.Fd())
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0)
	}
	if err == nil {
		err = unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: 24, Col: 30})
	}
	if err != nil {
		t.Fatal(err)
	}
	tty, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	var seen strings.Builder
	until := func(word string) {
		b := make([]byte, 4096)
		for !strings.Contains(seen.String(), word) {
			n, err := master.Read(b)
			if err != nil {
				t.Fatalf("the terminal shows %q and ends: %v", seen.String(), err)
			}
			seen.Write(b[:n])
		}
	}
	watchPool(t, tty, func() { until("active") }, func() { until("inactive") })
	text := seen.String()
	if !strings.HasPrefix(text, "NAME  STATE") || !strings.Contains(text, "\x1b[2A") {
		t.Errorf("the terminal shows %q, want a table that is written over", text)
	}
	for _, line := range strings.Split(text, "\r\n") {
		if plain := strings.NewReplacer("\x1b[K", "", "\x1b[J", "", "\x1b[2A", "").Replace(line); len(plain) > 29 {
			t.Errorf("the line %q has %d characters, more than the terminal", plain, len(plain))
		}
	}
}
