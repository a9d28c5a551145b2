package bundle_test

import (
	"bytes"
	"errors"
	"reflect"
	"strings"
	"testing"

	"github.com/tarn-storage/tarn/diskfmt/parallels/bundle"
	"github.com/tarn-storage/tarn/errs"
)

const layerGUID = "11111111-2222-3333-4444-555555555555"

func chain() bundle.Chain {
	return bundle.Chain{
		Size: 20 << 20, Resizing: 30 << 20, BlockSize: 1 << 20,
		Layers: []bundle.Layer{
			{File: "root.hds", GUID: layerGUID, Size: 10 << 20, Merging: true},
			{File: "root.hds.0197-a", GUID: bundle.Top, Size: 20 << 20},
		},
	}
}

func TestChain(t *testing.T) {
	want := chain()
	got, err := bundle.ParseChain(want.Bytes())
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("ParseChain = %+v, %v; want %+v", got, err, want)
	}
	one := bundle.Chain{Size: 20 << 20, BlockSize: 1 << 20, Layers: want.Layers[1:]}
	if d, err := bundle.Parse(one.Bytes()); err != nil || d.Size() != 20<<20 || d.BlockSize != 1<<20 || d.Plain || d.File != "root.hds.0197-a" {
		t.Errorf("an importer reads %+v, %v", d, err)
	}
}

func TestChainRefuses(t *testing.T) {
	for name, change := range map[string]func(b string) string{
		"empty":       func(string) string { return "" },
		"white space": func(b string) string { return b + " " },
		"another element": func(b string) string {
			return strings.Replace(b, "<Padding>", "<Miscellaneous></Miscellaneous><Padding>", 1)
		},
		"a DTD":            func(b string) string { return strings.Replace(b, "<Parallels", "<!DOCTYPE x><Parallels", 1) },
		"a file elsewhere": func(b string) string { return strings.Replace(b, ">root.hds<", ">../root.hds<", 1) },
		"a file twice":     func(b string) string { return strings.Replace(b, "root.hds.0197-a", "root.hds", 1) },
		"no top": func(b string) string {
			return strings.ReplaceAll(b, bundle.Top, "51111111-2222-3333-4444-555555555555")
		},
		"another size":     func(b string) string { return strings.Replace(b, "<End>", "<End>1", 1) },
		"a negative size":  func(b string) string { return strings.ReplaceAll(b, "40960", "-40960") },
		"an enormous size": func(b string) string { return strings.ReplaceAll(b, "40960", "4611686018427387904") },
		"another parent":   func(b string) string { return strings.Replace(b, "<ParentGUID>{11", "<ParentGUID>{21", 1) },
		"a plain image":    func(b string) string { return strings.Replace(b, "Compressed", "Plain", 1) },
		"a letter's case":  func(b string) string { return strings.Replace(b, "5fbaabe3", "5FBAABE3", 1) },
		"clusters of none": func(b string) string { return strings.Replace(b, "<Blocksize>2048", "<Blocksize>0", 1) },
		"no images":        func(b string) string { return b[:strings.Index(b, "<Image>")] + b[strings.LastIndex(b, "</Image>")+8:] },
	} {
		b := change(string(chain().Bytes()))
		if bytes.Equal([]byte(b), chain().Bytes()) {
			t.Errorf("%s: nothing was changed", name)
		}
		if _, err := bundle.ParseChain([]byte(b)); !errors.Is(err, errs.Corrupt) {
			t.Errorf("%s: %v, want corrupt", name, err)
		}
	}
}
