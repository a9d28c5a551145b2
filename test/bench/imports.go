package main

import (
	"context"
	"fmt"
	"os"
	"strings"
)

// source is a form of the test image, how it is made of the raw one, and what
// people use today to bring it into raw form.
type source struct {
	name, format, compression string
	make                      string   // of $RAW, into $OUT; empty for the raw one
	peers                     []string // of $SRC, into $OUT
}

const (
	convert = `qemu-img convert -W -m 16 -O raw -f `
	form    = `qemu-img convert -f raw "$RAW" "$OUT" -O `
	sparse  = ` "$SRC" | dd of="$OUT" conv=sparse bs=64k iflag=fullblock`
)

// digested are the peers of what holds raw bytes or qcow2: with a digest, as an
// import has it. OpenSSL uses the processor's SHA instructions, coreutils may not.
func digested(format string) []string {
	const next = ` "$SRC" && ` + convert
	return []string{`openssl dgst -sha256` + next + format + ` "$SRC" "$OUT"`, `sha256sum` + next + format + ` "$SRC" "$OUT"`}
}

// sources are what is imported. Formats that digested is not for are compared
// with the conversion alone, and wrapped ones with their decompressor and a
// sparse writer.
var sources = []source{
	{"raw", "raw", "", ``, digested("raw")},
	{"qcow2", "qcow2", "", form + `qcow2`, digested("qcow2")},
	{"qcow2, zlib", "qcow2", "", form + `qcow2 -c`, digested("qcow2")},
	{"qcow2, zstd", "qcow2", "", form + `qcow2 -c -o compression_type=zstd`, digested("qcow2")},
	{"vmdk, streamOptimized", "vmdk", "", form + `vmdk -o subformat=streamOptimized`, []string{convert + `vmdk "$SRC" "$OUT"`}},
	{"vhd, dynamic", "vhd", "", form + `vpc -o subformat=dynamic,force_size=on`, []string{convert + `vpc "$SRC" "$OUT"`}},
	{"vhdx", "vhdx", "", form + `vhdx`, []string{convert + `vhdx "$SRC" "$OUT"`}},
	{"vdi", "vdi", "", form + `vdi`, []string{convert + `vdi "$SRC" "$OUT"`}},
	{"raw.gz", "raw", "gzip", `gzip -c "$RAW" >"$OUT"`, []string{`gzip -dc` + sparse}},
	{"raw.zst", "raw", "zstd", `zstd -qc "$RAW" >"$OUT"`, []string{`zstd -qdc` + sparse}},
	{"raw.xz", "raw", "xz", `xz -1 -T1 -c "$RAW" >"$OUT"`, []string{`xz -T1 -dc` + sparse}},
	{"raw.xz, of several blocks", "raw", "xz", `xz -1 -T2 -c "$RAW" >"$OUT"`, []string{`xz -T1 -dc` + sparse}},
}

// imports measures the import of the test image: verdict, both digests and the
// pool's form of the content, durable, against the peers' conversion.
func (b *bench) imports(ctx context.Context) error {
	raw, err := b.image(ctx)
	if err != nil {
		return err
	}
	d, err := b.ready(ctx, "")
	if err != nil {
		return err
	}
	defer d.stop()
	for _, s := range sources {
		src := raw
		if s.make != "" {
			src = b.path("image." + strings.NewReplacer(" ", "", ",", ".").Replace(s.name))
			if err := shell(ctx, s.make, "RAW="+raw, "OUT="+src); err != nil {
				return err
			}
		}
		if err := b.importOf(ctx, d, s, src); err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
	}
	fmt.Println("  the content digest alone, against the conversion alone")
	return b.goBench(ctx, "./internal/ingest", "Content", "5x", "TARN_BENCH_IMAGE="+raw)
}

func (b *bench) importOf(ctx context.Context, d *daemon, s source, src string) error {
	out := b.path("converted")
	if _, err := os.ReadFile(src); err != nil { // both find it in the page cache
		return err
	}
	args := []string{"--socket", d.socket, "image", "import", "x", src, "--format", s.format}
	if s.compression != "" {
		args = append(args, "--compression", s.compression)
	}
	ours := work{name: "tarn image import", pid: d.pid, do: func(ctx context.Context) error {
		return command(ctx, b.path("bin", "tarn"), args...)
	}, after: func(ctx context.Context) error { return finished(d.ImageDelete(ctx, patience, "x")) }}
	var peers []work
	for _, script := range s.peers {
		peers = append(peers, work{name: script, do: func(ctx context.Context) error {
			return shell(ctx, script, "SRC="+src, "OUT="+out)
		}, after: func(context.Context) error { return os.Remove(out) }})
	}
	return b.compare(ctx, "import of "+s.name, ours, peers...)
}

// shell runs a script with variables.
func shell(ctx context.Context, script string, vars ...string) error {
	return command(ctx, "env", append(vars, "bash", "-eo", "pipefail", "-c", script)...)
}
