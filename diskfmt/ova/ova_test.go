package ova_test

import (
	"archive/tar"
	"bytes"
	"crypto/sha1"
	"crypto/sha256"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/tarn-storage/tarn/diskfmt/ova"
	"github.com/tarn-storage/tarn/diskfmt/strict"
)

const vmdk = "http://www.vmware.com/interfaces/specifications/vmdk.html#streamOptimized"

// envelope is a description with the given files and disks.
func envelope(files, disks string) string {
	return `<?xml version="1.0" encoding="UTF-8"?>
<!--written by hand-->
<Envelope ovf:version="1.0" xmlns="http://schemas.dmtf.org/ovf/envelope/1" xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1">
  <References>` + files + `</References>
  <DiskSection><Info>disks</Info>` + disks + `</DiskSection>
  <VirtualSystem ovf:id="vm"><Info>a machine</Info></VirtualSystem>
</Envelope>`
}

const (
	oneFile = `<File ovf:href="disk1.vmdk" ovf:id="file1" ovf:size="5000"/>`
	oneDisk = `<Disk ovf:capacity="10" ovf:capacityAllocationUnits="byte * 2^30" ovf:diskId="d1" ovf:fileRef="file1" ovf:format="` + vmdk + `"/>`
)

type entry struct {
	name string
	body string
	kind byte
}

func archive(t testing.TB, entries ...entry) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		h := &tar.Header{Name: e.name, Size: int64(len(e.body)), Mode: 0o644, Typeflag: tar.TypeReg}
		if e.kind != 0 {
			h.Typeflag, h.Size, h.Linkname = e.kind, 0, "/etc/passwd"
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if h.Size > 0 {
			if _, err := w.Write([]byte(e.body)); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func open(b []byte) (ova.Disk, error) { return ova.Open(bytes.NewReader(b), int64(len(b))) }

func TestOpen(t *testing.T) {
	body, text := strings.Repeat("disk ", 1000), envelope(oneFile, oneDisk)
	manifest := fmt.Sprintf("SHA256(vm.ovf)= %x\nSHA1 (disk1.vmdk) = %x\r\nSHA256(disk1.vmdk)= %X\n",
		sha256.Sum256([]byte(text)), sha1.Sum([]byte(body)), sha256.Sum256([]byte(body)))
	for _, row := range []struct {
		name    string
		entries []entry
		format  string
	}{
		{"alone", []entry{{name: "vm.ovf", body: text}, {name: "disk1.vmdk", body: body}}, "vmdk"},
		{"manifest and certificate", []entry{{name: "vm.ovf", body: text}, {name: "vm.mf", body: manifest}, {name: "vm.cert", body: "x"}, {name: "disk1.vmdk", body: body}}, "vmdk"},
		{"manifest last", []entry{{name: "vm.ovf", body: text}, {name: "disk1.vmdk", body: body}, {name: "vm.nvram", body: "x"}, {name: "vm.mf", body: manifest}}, "vmdk"},
		{"qcow2", []entry{{name: "vm.ovf", body: strings.Replace(text, vmdk, "http://www.gnome.org/~markmc/qcow-image-format.html", 1)}, {name: "disk1.vmdk", body: body}}, "qcow2"},
	} {
		b := archive(t, row.entries...)
		d, err := open(b)
		if err != nil || d.Format != row.format || string(b[d.Offset:d.Offset+d.Size]) != body {
			t.Errorf("%s: %+v, %v", row.name, d, err)
			continue
		}
		if err := d.Check(t.Context(), bytes.NewReader(b), nil); err != nil {
			t.Errorf("%s: Check: %v", row.name, err)
		}
		b[d.Offset+4000] ^= 1
		err = d.Check(t.Context(), bytes.NewReader(b), nil)
		if want := len(d.Features) > 0; want != (strict.ClassOf(err) == strict.Checksum) {
			t.Errorf("%s, with a changed byte: got %v, want CHECKSUM: %v", row.name, err, want)
		}
	}
}

func TestRefused(t *testing.T) {
	body, text := strings.Repeat("disk ", 1000), envelope(oneFile, oneDisk)
	ovf, disk := entry{name: "vm.ovf", body: text}, entry{name: "disk1.vmdk", body: body}
	with := func(files, disks string) []byte {
		return archive(t, entry{name: "vm.ovf", body: envelope(files, disks)}, disk)
	}
	replaced := func(old, new string) []byte {
		return archive(t, entry{name: "vm.ovf", body: strings.Replace(text, old, new, 1)}, disk)
	}
	many := []entry{ovf, disk}
	for i := range 70 {
		many = append(many, entry{name: fmt.Sprintf("f%d", i)})
	}
	whole := archive(t, ovf, disk)
	for _, row := range []struct {
		name string
		b    []byte
		want string
	}{
		{"nothing", nil, strict.Empty},
		{"only zeroes", make([]byte, 4096), strict.Empty},
		{"no tar", bytes.Repeat([]byte("x"), 4096), strict.Mismatch},
		{"cut in the disk", whole[:len(whole)-4096], strict.Truncated},
		{"cut in a header", whole[:100], strict.Truncated},
		{"disk first", archive(t, disk, ovf), strict.Mismatch},
		{"symbolic link", archive(t, ovf, entry{name: "disk1.vmdk", kind: tar.TypeSymlink}), strict.UnsafeTar},
		{"hard link", archive(t, ovf, entry{name: "disk1.vmdk", kind: tar.TypeLink}), strict.UnsafeTar},
		{"device", archive(t, ovf, disk, entry{name: "sda", kind: tar.TypeBlock}), strict.UnsafeTar},
		{"FIFO", archive(t, ovf, disk, entry{name: "f", kind: tar.TypeFifo}), strict.UnsafeTar},
		{"folder", archive(t, ovf, disk, entry{name: "d", kind: tar.TypeDir}), strict.UnsafeTar},
		{"absolute path", archive(t, ovf, disk, entry{name: "/etc/passwd"}), strict.UnsafeTar},
		{"path upwards", archive(t, ovf, disk, entry{name: "../x"}), strict.UnsafeTar},
		{"path", archive(t, ovf, disk, entry{name: "a/b"}), strict.UnsafeTar},
		{"dots", archive(t, ovf, disk, entry{name: ".."}), strict.UnsafeTar},
		{"control character", archive(t, ovf, disk, entry{name: "a\x1b[2J"}), strict.UnsafeTar},
		{"a name twice", archive(t, ovf, disk, disk), strict.UnsafeTar},
		{"too many members", archive(t, many...), strict.Limit},
		{"long description", archive(t, entry{name: "vm.ovf", body: strings.Repeat(" ", 1<<20+1)}, disk), strict.Limit},
		{"document type", replaced("<!--", `<!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/passwd">]><!--`), strict.UnsafeXML},
		{"entity", replaced("disk1.vmdk", "&e;"), strict.UnsafeXML},
		{"deep", replaced("<Info>disks</Info>", strings.Repeat("<a>", 40)+strings.Repeat("</a>", 40)), strict.UnsafeXML},
		{"crossed elements", replaced("</DiskSection>", "</Envelope>"), strict.UnsafeXML},
		{"cut XML", archive(t, entry{name: "vm.ovf", body: text[:len(text)-40]}, disk), strict.Truncated},
		{"no version", replaced(`xmlns="http://schemas.dmtf.org/ovf/envelope/1" xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1"`, `xmlns="urn:x"`), strict.Version},
		{"no disk", with(oneFile, ""), strict.Feature},
		{"two disks", with(oneFile, oneDisk+oneDisk), strict.Feature},
		{"parent", with(oneFile, strings.Replace(oneDisk, "<Disk", `<Disk ovf:parentRef="d0"`, 1)), strict.External},
		{"no file", with(oneFile, strings.Replace(oneDisk, `ovf:fileRef="file1"`, "", 1)), strict.Empty},
		{"unknown file", with(oneFile, strings.Replace(oneDisk, "file1", "file2", 1)), strict.Corrupt},
		{"file twice", with(oneFile+oneFile, oneDisk), strict.Corrupt},
		{"compressed", with(strings.Replace(oneFile, "<File", `<File ovf:compression="gzip"`, 1), oneDisk), strict.Feature},
		{"in pieces", with(strings.Replace(oneFile, "<File", `<File ovf:chunkSize="100"`, 1), oneDisk), strict.Feature},
		{"a path", with(strings.Replace(oneFile, "disk1.vmdk", "../disk1.vmdk", 1), oneDisk), strict.External},
		{"a URL", with(strings.Replace(oneFile, "disk1.vmdk", "http://127.0.0.1/x", 1), oneDisk), strict.External},
		{"not there", with(strings.Replace(oneFile, "disk1.vmdk", "disk2.vmdk", 1), oneDisk), strict.External},
		{"another size", with(strings.Replace(oneFile, "5000", "5001", 1), oneDisk), strict.Corrupt},
		{"no size", with(strings.Replace(oneFile, "5000", "-1", 1), oneDisk), strict.Corrupt},
		{"format", with(oneFile, strings.Replace(oneDisk, vmdk, "urn:x", 1)), strict.Format},
		{"manifest of another description", archive(t, ovf, disk, entry{name: "vm.mf", body: "SHA1(vm.ovf)= 00\n"}), strict.Checksum},
		{"manifest of nonsense", archive(t, ovf, disk, entry{name: "vm.mf", body: "hello\n"}), strict.Corrupt},
	} {
		if _, err := open(row.b); strict.ClassOf(err) != row.want {
			t.Errorf("%s: got %v, want %s", row.name, err, row.want)
		}
	}
}

func TestCheckFails(t *testing.T) {
	body, text := strings.Repeat("disk ", 1000), envelope(oneFile, oneDisk)
	b := archive(t, entry{name: "vm.ovf", body: text}, entry{name: "vm.mf", body: fmt.Sprintf("SHA1(disk1.vmdk)= %x\n", sha1.Sum([]byte(body)))}, entry{name: "disk1.vmdk", body: body})
	d, err := open(b)
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Check(t.Context(), bytes.NewReader(b[:d.Offset+100]), nil); strict.ClassOf(err) != strict.Truncated {
		t.Errorf("a file that shrank: got %v, want TRUNCATED", err)
	}
	if err := d.Check(t.Context(), failing{}, nil); !errors.Is(err, errBroken) {
		t.Errorf("a failing disk: got %v, want %v", err, errBroken)
	}
}

var errBroken = errors.New("I/O error")

type failing struct{}

func (failing) ReadAt([]byte, int64) (int, error) { return 0, errBroken }

func FuzzOpen(f *testing.F) {
	body := strings.Repeat("disk ", 1000)
	f.Add(archive(f, entry{name: "vm.ovf", body: envelope(oneFile, oneDisk)}, entry{name: "disk1.vmdk", body: body}))
	f.Add(archive(f, entry{name: "vm.ovf", body: envelope(oneFile, oneDisk)}, entry{name: "vm.mf", body: "SHA1(disk1.vmdk)= 00\n"}, entry{name: "disk1.vmdk", body: body}))
	f.Fuzz(func(t *testing.T, b []byte) {
		d, err := open(b)
		if err != nil {
			if strict.ClassOf(err) == "" {
				t.Fatalf("%v has no class", err)
			}
			return
		}
		if d.Offset < 0 || d.Size < 0 || d.Offset > int64(len(b))-d.Size || d.Format == "" {
			t.Fatalf("accepted %+v in %d bytes", d, len(b))
		}
		if err := d.Check(t.Context(), bytes.NewReader(b), nil); err != nil && strict.ClassOf(err) == "" {
			t.Fatalf("Check: %v has no class", err)
		}
	})
}
