package hostexec

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/tarn-storage/tarn/errs"
)

func TestForegroundReturnsTheStatus(t *testing.T) {
	for _, row := range []struct {
		script string
		want   int
	}{{"exit 0", 0}, {"exit 7", 7}, {"kill -9 $$", 137}, {`test "$TARN_SOCKET" = /s`, 0}} {
		got, err := Foreground(t.Context(), []string{"sh", "-c", row.script}, []string{"TARN_SOCKET=/s"})
		if err != nil || got != row.want {
			t.Errorf("%s: got %d, %v, want %d", row.script, got, err, row.want)
		}
	}
}

func TestForegroundWithoutACommand(t *testing.T) {
	if _, err := Foreground(t.Context(), nil, nil); !errors.Is(err, errs.Invalid) {
		t.Errorf("no command: got %v, want errs.Invalid", err)
	}
	if _, err := Foreground(t.Context(), []string{"/nonexistent/command"}, nil); !errors.Is(err, errs.NotFound) {
		t.Errorf("a missing command: got %v, want errs.NotFound", err)
	}
}

func TestForegroundEndsWithItsContext(t *testing.T) {
	fifo := filepath.Join(t.TempDir(), "ready")
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan int, 1)
	go func() {
		status, err := Foreground(ctx, []string{"sh", "-c", `mkfifo "$0.in" && : > "$0" && read x < "$0.in"`, fifo}, nil)
		if err != nil {
			t.Errorf("got %v", err)
		}
		done <- status
	}()
	for {
		if _, err := os.Stat(fifo); err == nil {
			break
		}
	}
	cancel()
	if got := <-done; got != 143 {
		t.Errorf("got %d, want 143 for SIGTERM", got)
	}
}
