package main

import (
	"context"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// exported is a form that an image is written in: tarn's flags and what people
// use today, from $SRC into $OUT.
type exported struct{ name, flags, peer string }

var targets = []exported{
	{"qcow2, zlib", "qcow2 --compression zlib", `qemu-img convert -c -m 16 -f raw -O qcow2 "$SRC" "$OUT"`},
	{"qcow2, zstd", "qcow2 --compression zstd", `qemu-img convert -c -m 16 -f raw -O qcow2 -o compression_type=zstd "$SRC" "$OUT"`},
	{"vmdk, streamOptimized", "vmdk", `qemu-img convert -m 16 -f raw -O vmdk -o subformat=streamOptimized "$SRC" "$OUT"`},
	{"raw", "raw", `qemu-img convert -W -m 16 -f raw -O raw "$SRC" "$OUT"`},
	{"qcow2", "qcow2", `qemu-img convert -W -m 16 -f raw -O qcow2 "$SRC" "$OUT"`},
	{"vhd, dynamic", "vhd", `qemu-img convert -W -m 16 -f raw -O vpc -o subformat=dynamic,force_size=on "$SRC" "$OUT"`},
	{"vhdx", "vhdx", `qemu-img convert -W -m 16 -f raw -O vhdx "$SRC" "$OUT"`},
	{"vdi", "vdi", `qemu-img convert -W -m 16 -f raw -O vdi "$SRC" "$OUT"`},
}

// exports measures the export of the test image, durable, against a conversion
// of the raw file, which is not.
func (b *bench) exports(ctx context.Context) error {
	raw, err := b.image(ctx)
	if err != nil {
		return err
	}
	d, err := b.ready(ctx, raw)
	if err != nil {
		return err
	}
	defer d.stop()
	for _, x := range targets {
		if err := b.exportAs(ctx, d, raw, x); err != nil {
			return fmt.Errorf("%s: %w", x.name, err)
		}
	}
	return nil
}

func (b *bench) exportAs(ctx context.Context, d *daemon, raw string, x exported) error {
	if _, err := os.ReadFile(raw); err != nil { // the peer finds it in the page cache
		return err
	}
	out := b.path("exported")
	args := append([]string{"--socket", d.socket, "image", "export", "i", out, "--format"}, strings.Fields(x.flags)...)
	var sizes [2]int64
	taken := func(i int) func(context.Context) error {
		return func(context.Context) error {
			var st unix.Stat_t
			if err := unix.Stat(out, &st); err != nil {
				return err
			}
			sizes[i] = st.Blocks * 512
			return os.Remove(out)
		}
	}
	ours := work{name: "tarn image export", pid: d.pid, do: func(ctx context.Context) error {
		return command(ctx, b.path("bin", "tarn"), args...)
	}, after: taken(0)}
	peer := work{name: x.peer, do: func(ctx context.Context) error {
		return shell(ctx, x.peer, "SRC="+raw, "OUT="+out)
	}, after: taken(1)}
	if err := b.compare(ctx, "export as "+x.name, ours, peer); err != nil {
		return err
	}
	fmt.Printf("    %-38s %10.1f MiB  %10.1f MiB   ratio %.3f\n", "space taken, tarn's and the peer's",
		float64(sizes[0])/mib, float64(sizes[1])/mib, float64(sizes[0])/float64(sizes[1]))
	return nil
}
