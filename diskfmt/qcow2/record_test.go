package qcow2_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/tarn-storage/tarn/diskfmt"
	"github.com/tarn-storage/tarn/diskfmt/diskfmttest"
	"github.com/tarn-storage/tarn/diskfmt/qcow2"
	"github.com/tarn-storage/tarn/errs"
)

func TestOpenComparesWithTheRecord(t *testing.T) {
	m := &memFile{}
	o := qcow2.CreateOptions{VirtualSize: 1 << 20, BackingName: "base_1", BackingFormat: diskfmt.Raw}
	if err := qcow2.Create(m, o); err != nil {
		t.Fatal(err)
	}
	good := diskfmttest.Overlay(1<<20, 65536, "base_1", diskfmt.Raw)
	if _, err := qcow2.Open(m, int64(len(m.B)), good); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name   string
		change func(*diskfmt.Recorded)
		says   []string // header's value and record's
	}{
		{"virtual size", func(r *diskfmt.Recorded) { r.VirtualSize = 2 << 20 }, []string{"1048576", "2097152"}},
		{"cluster size", func(r *diskfmt.Recorded) { r.ClusterSize = 4096 }, []string{"65536", "4096"}},
		{"extended L2", func(r *diskfmt.Recorded) { r.ExtendedL2 = true }, []string{"false", "true"}},
		{"backing name", func(r *diskfmt.Recorded) { r.BackingName = "base_2" }, []string{`"base_1"`, `"base_2"`}},
		{"no backing", func(r *diskfmt.Recorded) { r.BackingName, r.BackingFmt = "", "" }, []string{`"base_1"`, `""`}},
		{"backing format", func(r *diskfmt.Recorded) { r.BackingFmt = diskfmt.Qcow2 }, []string{`"raw"`, `"qcow2"`}},
	} {
		want := good
		c.change(&want)
		_, err := qcow2.Open(m, int64(len(m.B)), want)
		if !errors.Is(err, errs.Corrupt) {
			t.Errorf("%s: got %v, want %v", c.name, err, errs.Corrupt)
			continue
		}
		for _, s := range c.says {
			if !strings.Contains(err.Error(), s) {
				t.Errorf("%s: %q does not name %s", c.name, err, s)
			}
		}
	}
	if _, err := qcow2.Open(m, int64(len(m.B)), diskfmttest.Raw(1<<20)); !errors.Is(err, errs.Internal) {
		t.Errorf("a record of a raw disk: got %v, want %v", err, errs.Internal)
	}
}

func TestCreateRefuses(t *testing.T) {
	for _, o := range []qcow2.CreateOptions{
		{},
		{VirtualSize: -512},
		{VirtualSize: 513},
		{VirtualSize: 65 << 40},
		{VirtualSize: 1 << 20, ClusterSize: 256},
		{VirtualSize: 1 << 20, ClusterSize: 3000},
		{VirtualSize: 1 << 20, ClusterSize: 4 << 20},
		{VirtualSize: 1 << 20, ClusterSize: 4096, ExtendedL2: true},
		{VirtualSize: 1 << 20, BackingName: "b"},
		{VirtualSize: 1 << 20, BackingFormat: diskfmt.Raw},
		{VirtualSize: 1 << 20, BackingName: "a\x00b", BackingFormat: diskfmt.Raw},
		{VirtualSize: 1 << 20, BackingName: strings.Repeat("b", 1024), BackingFormat: diskfmt.Raw},
		{VirtualSize: 1 << 20, ClusterSize: 512, BackingName: strings.Repeat("b", 400), BackingFormat: diskfmt.Raw},
		{VirtualSize: 64 << 40, ClusterSize: 512},
	} {
		m := &memFile{}
		if err := qcow2.Create(m, o); !errors.Is(err, errs.Invalid) || len(m.B) != 0 {
			t.Errorf("Create(%+v): got %v after %d bytes, want %v", o, err, len(m.B), errs.Invalid)
		}
	}
}
