package netfsdrv

import (
	"errors"
	"io/fs"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/blkio"
	"github.com/tarn-storage/tarn/internal/disk"
	"github.com/tarn-storage/tarn/internal/pool/driver"
)

// TestExplained passes on what a server's answers become.
func TestExplained(t *testing.T) {
	c := driver.Config{Source: disk.PoolSource{Host: "fe80::1", Export: "/e/"}}
	for _, tt := range []struct {
		err  error
		want errs.Kind
		hint bool
	}{
		{unix.ESTALE, errs.Unavailable, true},
		{unix.EACCES, errs.Unavailable, os.Geteuid() == 0},
		{unix.ENOSPC, errs.NoSpace, false},
	} {
		var e *errs.Error
		err := (export{}).Explained("op", c, blkio.Error("volume.create", "v", &fs.PathError{Op: "open", Path: "v", Err: tt.err}))
		if !errors.As(err, &e) || e.Kind != tt.want || (e.Hint != "") != tt.hint || !errors.Is(err, tt.err) {
			t.Errorf("%v becomes %v of kind %s with the hint %q, want %s", tt.err, err, errs.KindOf(err), e.Hint, tt.want)
		}
	}
	if got, want := source(c), "[fe80::1]:/e"; got != want {
		t.Errorf("source = %q, want %q", got, want)
	}
	if err := (export{}).Explained("op", c, nil); err != nil {
		t.Errorf("no error becomes %v", err)
	}
}

func TestFileSystem(t *testing.T) {
	const table = "NV SERVER   PORT DEV          FSID                              FSC\n" +
		"v4 7f000001  801 0:25         0:0                               no\n" +
		"v4 7f000001  801 0:26         3e8a1:b2                          no\n"
	for dev, want := range map[string]string{"0:25": "0:0", "0:26": "3e8a1:b2", "0:2": ""} {
		if got := fileSystem(table, dev); got != want {
			t.Errorf("fileSystem(%s) = %q, want %q", dev, got, want)
		}
	}
}
