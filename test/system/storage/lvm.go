package storage

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/tarn-storage/tarn/api"
	"github.com/tarn-storage/tarn/test/system/volumegroup"
)

// Logical is a volume group of LVM, LVMThin a thin pool.
var (
	Logical = Technology{Name: "logical", Raw: true, Slow: true, New: func(t testing.TB, size int64) *Storage { return onLVM(t, size, false) },
		Small: func(t testing.TB, size int64) *Storage { return onLVM(t, size+64<<20, false) }} // nothing is promised that is not there
	LVMThin = Technology{Name: "lvmthin", Raw: true, Slow: true, New: func(t testing.TB, size int64) *Storage { return onLVM(t, size, true) }}
)

// InGuest reports whether the tests run in the guest that has LVM, where there is
// no QEMU.
func InGuest() bool { return os.Getenv("TARN_TEST_LVM") != "" }

func onLVM(t testing.TB, size int64, thin bool) *Storage {
	t.Helper()
	const extent = 1 << 20
	size = (size + extent - 1) / extent * extent
	if !thin {
		size += 8 << 20 // the pool's records
	}
	vg := volumegroup.New(t, volumegroup.Spec{Size: size, Extent: extent, Thin: thin})
	s := &Storage{Request: api.PoolCreate{Driver: "logical", Source: api.PoolSource{VolumeGroup: vg}}, Args: []string{"--driver", "logical", "--vg", vg}, Unit: 4 << 20,
		Read: readFile, Write: writeFile, Hold: holdDevice,
		Left: func(t testing.TB) (names []string) {
			for name := range strings.FieldsSeq(volumegroup.Run(t, "lvm", "lvs", "--noheadings", "-o", "lv_name", vg)) {
				if name != volumegroup.ThinPool && !strings.HasPrefix(name, ".tarn-records") {
					names = append(names, name)
				}
			}
			return names
		}}
	if thin {
		s.Request.Driver, s.Request.Source.ThinPool = "lvmthin", volumegroup.ThinPool
		s.Args = []string{"--driver", "lvmthin", "--vg", vg, "--thin-pool", volumegroup.ThinPool}
	}
	s.Fill = func(t testing.TB) {
		t.Helper()
		if !thin {
			volumegroup.Run(t, "lvm", "lvcreate", "-qq", "--yes", "-Zn", "-Wn", "-l", "100%FREE", "-n", filler, vg)
			return
		}
		volumegroup.Run(t, "lvm", "lvcreate", "-qq", "--yes", "-Wn", "-V", fmt.Sprint(size, "b"), "-n", filler, "--thinpool", volumegroup.ThinPool, vg)
		writeThin(t, vg, filler, size)
	}
	s.Free = func(t testing.TB, left int64) {
		t.Helper()
		volumegroup.Run(t, "lvm", "lvremove", "-qq", "--force", vg+"/"+filler)
		switch {
		case left == 0:
		case thin:
			volumegroup.Run(t, "lvm", "lvcreate", "-qq", "--yes", "-Wn", "-V", fmt.Sprint(left, "b"), "-n", filler, "--thinpool", volumegroup.ThinPool, vg)
			writeThin(t, vg, filler, left)
		default:
			volumegroup.Run(t, "lvm", "lvcreate", "-qq", "--yes", "-Zn", "-Wn", "-L", fmt.Sprint(left, "b"), "-n", filler, vg)
		}
	}
	return s
}

// writeThin writes n bytes into a thin volume, as far as the thin pool has room.
func writeThin(t testing.TB, vg, name string, n int64) {
	t.Helper()
	f, err := os.OpenFile("/dev/"+vg+"/"+name, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := bytes.Repeat([]byte{1}, 1<<20)
	for ; n > 0 && err == nil; n -= int64(len(b)) {
		_, err = f.Write(b[:min(n, int64(len(b)))])
	}
	_ = f.Sync() // what had no room fails here
}

// holdDevice has another process keep a device open for writing: the kernel
// counts who does, whatever locks they take.
func holdDevice(t testing.TB, v api.Volume) (release func()) {
	t.Helper()
	cmd := exec.Command("sh", "-c", `exec 3<>"$0" && echo open && read -r end`, v.Path)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	done := false
	release = func() {
		if !done {
			done = true
			in.Close()
			_ = cmd.Wait()
		}
	}
	t.Cleanup(release)
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "open\n" {
		t.Fatalf("the process that is to hold %s says %q, %v", v.Path, line, err)
	}
	return release
}
