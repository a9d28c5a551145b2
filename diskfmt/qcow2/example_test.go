package qcow2_test

import (
	"fmt"

	"github.com/tarn-storage/tarn/diskfmt"
	"github.com/tarn-storage/tarn/diskfmt/diskfmttest"
	"github.com/tarn-storage/tarn/diskfmt/qcow2"
)

// An overlay holds what was written since it was made; the rest is a layer
// below, which the reader names by kind and never opens.
func ExampleOpen() {
	file := &memFile{}
	err := qcow2.Create(file, qcow2.CreateOptions{VirtualSize: 1 << 30, BackingName: "base_1", BackingFormat: diskfmt.Raw})
	if err != nil {
		fmt.Println(err)
		return
	}
	r, err := qcow2.Open(file, int64(len(file.B)), diskfmttest.Overlay(1<<30, 65536, "base_1", diskfmt.Raw))
	if err != nil {
		fmt.Println(err)
		return
	}
	e, err := r.Extent(0)
	fmt.Println(e.Kind, e.Length, err)

	_, err = qcow2.Open(file, int64(len(file.B)), diskfmttest.Overlay(1<<30, 65536, "base_2", diskfmt.Raw))
	fmt.Println(err)
	// Output:
	// backing 1073741824 <nil>
	// qcow2.open: the header says backing "base_1", the record says "base_2"
}
