package engine_test

import (
	"context"
	"fmt"
	"os/exec"
	"strings"
	"testing"

	"github.com/tarn-storage/tarn/api"
)

// place returns where QEMU's arguments put the disk with a serial.
func place(t *testing.T, args []string, serial string) string {
	t.Helper()
	for _, arg := range args {
		if strings.Contains(arg, "serial="+serial) {
			at, _, _ := strings.Cut(arg, ",id=")
			return at
		}
	}
	t.Fatalf("no device with serial %s in %q", serial, args)
	return ""
}

// TestPlacesStay deletes the first disk of each bus: the others stay where the
// guest knows them, alone and together, and QEMU takes them.
func TestPlacesStay(t *testing.T) {
	ctx := context.Background()
	b := newBench(t)
	b.pool("main")
	var specs []api.DiskSpec
	for i := range 18 {
		specs = append(specs, api.DiskSpec{Role: "data", Size: 4096, Bus: []string{"scsi", "sata"}[i%2]})
	}
	b.instance("s", specs...)
	qemu, missing := exec.LookPath("qemu-system-x86_64")
	try := func(args []string) {
		t.Helper()
		if missing != nil {
			return
		}
		cmd := exec.Command(qemu, append([]string{"-S", "-display", "none", "-nodefaults", "-accel", "tcg", "-qmp", "stdio"}, args...)...)
		cmd.Stdin = strings.NewReader(`{"execute":"qmp_capabilities"}{"execute":"quit"}`)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("QEMU with %q: %v\n%s", args, err, out)
		}
	}
	show := func() map[string]string {
		t.Helper()
		all, err := b.InstanceShow(ctx, "s", "qemu")
		do(t, err)
		try(all.QEMU)
		at := map[string]string{}
		i, err := b.Instance(ctx, "s")
		do(t, err)
		for _, d := range i.Disks {
			at[d.Name] = place(t, all.QEMU, d.Serial)
			one, err := b.DiskShow(ctx, "s/"+d.Name, "qemu")
			do(t, err)
			if alone := place(t, one.QEMU, d.Serial); alone != at[d.Name] {
				t.Errorf("%s is at %s alone and at %s with the others", d.Name, alone, at[d.Name])
			}
		}
		return at
	}
	before := show()
	seen := map[string]bool{}
	for _, at := range before {
		if seen[at] {
			t.Errorf("two disks are at %s", at)
		}
		seen[at] = true
	}
	for i := range 14 { // with which the first AHCI controller goes
		ref := fmt.Sprintf("data%d", i)
		b.must(b.DiskDelete(ctx, api.Options{}, "s/"+ref))
		delete(before, ref)
	}
	for name, at := range show() {
		if at != before[name] {
			t.Errorf("%s was at %s and is at %s", name, before[name], at)
		}
	}
	last, err := b.DiskShow(ctx, "s/data17", "qemu")
	do(t, err)
	try(last.QEMU)
}
