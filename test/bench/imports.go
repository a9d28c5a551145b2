package main

import (
	"context"
	"errors"
	"os"
)

// imports measures the import of a raw and of a plain qcow2 image: verdict, both
// digests and the pool's form of the content, against a digest and a conversion.
func (b *bench) imports(ctx context.Context) error {
	raw, err := b.image()
	if err != nil {
		return err
	}
	qcow2, err := b.qcow2(ctx)
	if err != nil {
		return err
	}
	d, err := b.ready(ctx, "")
	if err != nil {
		return err
	}
	defer d.stop()
	return errors.Join(
		b.importOf(ctx, d, raw, "raw"),
		b.importOf(ctx, d, qcow2, "qcow2"),
	)
}

func (b *bench) importOf(ctx context.Context, d *daemon, src, format string) error {
	out := b.path("converted")
	if _, err := os.ReadFile(src); err != nil { // both find it in the page cache
		return err
	}
	ours := work{name: "tarn image import", pid: d.pid, do: func(ctx context.Context) error {
		return command(ctx, b.path("bin", "tarn"), "--socket", d.socket, "image", "import", "x", src, "--format", format)
	}, after: func(ctx context.Context) error { return finished(d.ImageDelete(ctx, patience, "x")) }}
	peer := work{name: "openssl dgst, qemu-img convert -W -m 16", do: func(ctx context.Context) error {
		if err := command(ctx, "openssl", "dgst", "-sha256", src); err != nil {
			return err
		}
		return command(ctx, "qemu-img", "convert", "-W", "-m", "16", "-f", format, "-O", "raw", src, out)
	}, after: func(context.Context) error { return os.Remove(out) }}
	return b.compare(ctx, "import of "+format, ours, peer)
}
