package ingest

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// variant is a way in which QEMU's tools write an image. A step is a command
// line of qemu-img, in which RAW and FILE are names of files, or begins with
// "io": then it is one command for qemu-io.
type variant struct {
	format, driver string // ours, QEMU's
	disk           string // of disks
	steps          []string
}

// disks are what is converted: odd sizes and such that end with a cluster.
func disks() map[string][]byte {
	return map[string][]byte{
		"even":  mixed(51, 2*mib),
		"odd":   mixed(52, 1*mib+7*512),
		"small": mixed(53, 3*512),
	}
}

func convertTo(driver, options string) string {
	if options != "" {
		options = "-o " + options
	}
	return fmt.Sprintf("convert -f raw -O %s %s RAW FILE", driver, options)
}

// qcow2Variants are all that TestQcow2 leaves out.
func qcow2Variants() map[string]variant {
	all := map[string]variant{}
	add := func(name, disk string, steps ...string) {
		all["qcow2, "+name] = variant{"qcow2", "qcow2", disk, steps}
	}
	for bits := 9; bits <= 21; bits++ {
		cluster := fmt.Sprintf("cluster_size=%d", 1<<bits)
		add(cluster, "odd", convertTo("qcow2", cluster))
		add(cluster+" compat=0.10", "odd", convertTo("qcow2", cluster+",compat=0.10"))
		add(cluster+" zlib", "even", convertTo("qcow2", cluster)+" -c")
		if bits >= 14 {
			add(cluster+" extended", "odd", convertTo("qcow2", cluster+",extended_l2=on"))
		}
	}
	for bits := 1; bits <= 64; bits *= 2 {
		add(fmt.Sprintf("refcounts of %d", bits), "even", convertTo("qcow2", fmt.Sprintf("cluster_size=4k,refcount_bits=%d", bits)))
	}
	for _, p := range []string{"off", "metadata", "falloc", "full"} {
		for _, o := range []string{"", ",cluster_size=512", ",extended_l2=on", ",compat=0.10", ",lazy_refcounts=on"} {
			add("preallocation="+p+o, "odd", convertTo("qcow2", "preallocation="+p+o))
		}
	}
	for _, bits := range []int{9, 12, 14, 21} {
		add(fmt.Sprintf("zstd 1<<%d", bits), "odd", convertTo("qcow2", fmt.Sprintf("cluster_size=%d,compression_type=zstd", 1<<bits))+" -c")
	}
	add("zstd extended", "even", convertTo("qcow2", "cluster_size=16k,extended_l2=on,compression_type=zstd")+" -c")
	add("three sectors", "small", convertTo("qcow2", ""))
	add("L1 behind the data", "even", convertTo("qcow2", "cluster_size=512"), "resize -q -f qcow2 FILE 9M", "io write -q -P 9 8M 64k")
	add("L1 behind the data, v2", "even", convertTo("qcow2", "cluster_size=512,compat=0.10"), "resize -q -f qcow2 FILE 9M")
	add("shrunk", "even", convertTo("qcow2", "cluster_size=4k"), "resize -q -f qcow2 --shrink FILE 1M")
	add("snapshots", "even", convertTo("qcow2", "cluster_size=4k"), "snapshot -c one FILE", "io write -q -P 5 100k 300k", "snapshot -c two FILE", "io discard -q 0 512k", "snapshot -d one FILE")
	add("snapshot of another size", "odd", convertTo("qcow2", ""), "snapshot -c one FILE", "resize -q -f qcow2 FILE 5M", "io write -q -P 5 4M 64k")
	add("snapshot, extended", "even", convertTo("qcow2", "extended_l2=on"), "snapshot -c one FILE", "io write -q -P 5 2k 10k")
	add("zeroed", "even", convertTo("qcow2", ""), "io write -q -z 64k 256k", "io write -q -z -u 512k 256k")
	add("subclusters zeroed", "even", convertTo("qcow2", "extended_l2=on"), "io write -q -z 6k 22k", "io discard -q 600k 30k")
	add("written over compressed", "even", convertTo("qcow2", "cluster_size=4k")+" -c", "io write -q -P 3 6k 50k")
	add("bitmaps", "even", convertTo("qcow2", ""), "bitmap --add FILE b", "bitmap --add --disable -g 4k FILE c")
	add("amended", "even", convertTo("qcow2", "compat=0.10"), "amend -q -f qcow2 -o compat=1.1,lazy_refcounts=on FILE", "amend -q -f qcow2 -o refcount_bits=64 FILE")
	add("amended to version 2", "even", convertTo("qcow2", ""), "io write -q -z 64k 256k", "amend -q -f qcow2 -o compat=0.10 FILE")
	return all
}

// otherVariants are those of the other formats.
func otherVariants() map[string]variant {
	all := map[string]variant{}
	add := func(format, driver, disk, options string, more ...string) {
		all[strings.Join(append([]string{format, disk, options}, more...), " ")] = variant{format, driver, disk, append([]string{convertTo(driver, options)}, more...)}
	}
	for _, sub := range []string{"monolithicSparse", "streamOptimized"} {
		for _, o := range []string{"", ",compat6=on", ",adapter_type=ide", ",adapter_type=buslogic", ",adapter_type=lsilogic", ",adapter_type=legacyESX", ",hwversion=13", ",toolsversion=10341"} {
			add("vmdk", "vmdk", "odd", "subformat="+sub+o)
		}
		add("vmdk", "vmdk", "small", "subformat="+sub)
	}
	add("vmdk", "vmdk", "even", "zeroed_grain=on", "io write -q -z 64k 256k")
	add("vmdk", "vmdk", "even", "compat6=on,zeroed_grain=on", "io write -q -z 0 128k", "io write -q -P 4 0 64k")
	add("vmdk", "vmdk", "even", "", "io write -q -P 4 1M 200k")
	for _, disk := range []string{"even", "odd", "small"} {
		for _, o := range []string{"subformat=dynamic", "subformat=fixed", "subformat=dynamic,force_size=on", "subformat=fixed,force_size=on"} {
			add("vhd", "vpc", disk, o)
		}
		for _, o := range []string{"", "static=on"} {
			add("vdi", "vdi", disk, o)
		}
		for _, o := range []string{"", "subformat=fixed", "block_state_zero=off"} {
			add("vhdx", "vhdx", disk, o)
		}
		add("ploop", "parallels", disk, "")
	}
	add("vhd", "vpc", "even", "", "io write -q -P 4 1M 200k")
	add("vdi", "vdi", "even", "", "io discard -q 0 1M", "io write -q -P 4 1M 200k")
	for mibs := 1; mibs <= 256; mibs *= 2 {
		add("vhdx", "vhdx", "odd", fmt.Sprintf("block_size=%dM", mibs))
	}
	for _, o := range []string{"log_size=2M", "log_size=16M", "log_size=3M,block_size=4M", "subformat=fixed,block_size=2M"} {
		add("vhdx", "vhdx", "even", o)
	}
	add("vhdx", "vhdx", "even", "", "io write -q -P 4 1M 200k", "io write -q -z 0 1M")
	for _, o := range []string{"4k", "64k", "128k", "1M", "2M", "16M"} {
		add("ploop", "parallels", "odd", "cluster_size="+o)
	}
	add("ploop", "parallels", "even", "cluster_size=64k", "io write -q -P 4 1M 200k")
	return all
}

// TestVariants has the gate read what QEMU's tools write in every variant of
// the accepted formats, and compares with how the same tools read it.
func TestVariants(t *testing.T) {
	if testing.Short() {
		t.Skip("takes long; TestQcow2 and TestFormats have one of each way of converting")
	}
	all := qcow2Variants()
	for name, v := range otherVariants() {
		all[name] = v
	}
	contents := disks()
	for name, v := range all {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			raw, file, want := filepath.Join(dir, "raw"), filepath.Join(dir, "file"), filepath.Join(dir, "want")
			if err := os.WriteFile(raw, contents[v.disk], 0o600); err != nil {
				t.Fatal(err)
			}
			for _, step := range v.steps {
				if line, ok := strings.CutPrefix(step, "io "); ok {
					tool(t, "qemu-io", "-f", v.driver, "-c", line, file)
					continue
				}
				tool(t, "qemu-img", strings.Fields(strings.NewReplacer("RAW", raw, "FILE", file).Replace(step))...)
			}
			tool(t, "qemu-img", "convert", "-f", v.driver, "-O", "raw", file, want)
			sameAs(t, v.format, file, want)
		})
	}
}

// sameAs imports a file as it is and as a stream, and compares what comes out
// with the file want.
func sameAs(t *testing.T, format, path, want string) {
	t.Helper()
	file, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	source := contents(t, file)
	disk, err := os.ReadFile(want)
	if err != nil {
		t.Fatal(err)
	}
	for how, src := range map[string]Source{
		"as a file":   {File: file},
		"as a stream": {Stream: bytes.NewReader(source), Size: int64(len(source))},
	} {
		got, err := importSource(t.Context(), t, src, Claim{Format: format})
		if err != nil {
			t.Errorf("%s: %v", how, err)
			continue
		}
		if got.header.VirtualSize < 0 {
			if err := got.file.Truncate(int64(len(disk))); err != nil {
				t.Fatal(err)
			}
			got.bytes = contents(t, got.file)
		}
		check(t, how, got, disk, source)
	}
}
