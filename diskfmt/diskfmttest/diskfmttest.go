// Package diskfmttest builds the Recorded values that tests need. It refuses
// to be imported by anything but tests.
package diskfmttest

import "github.com/tarn-storage/tarn/diskfmt"

// Raw is the record of a raw volume of size bytes.
func Raw(size int64) diskfmt.Recorded {
	return diskfmt.Recorded{Format: diskfmt.Raw, VirtualSize: size}
}

// Qcow2 is the record of a qcow2 volume of size bytes in clusters of cluster
// bytes without a backing layer.
func Qcow2(size, cluster int64) diskfmt.Recorded {
	return diskfmt.Recorded{Format: diskfmt.Qcow2, VirtualSize: size, ClusterSize: cluster}
}

// Overlay is the record of a qcow2 volume over the backing layer named name.
func Overlay(size, cluster int64, name string, format diskfmt.Format) diskfmt.Recorded {
	r := Qcow2(size, cluster)
	r.BackingName, r.BackingFmt = name, format
	return r
}

// Ploop is the record of a Parallels image of size bytes in clusters of cluster
// bytes without a backing layer.
func Ploop(size, cluster int64) diskfmt.Recorded {
	return diskfmt.Recorded{Format: diskfmt.Ploop, VirtualSize: size, ClusterSize: cluster}
}
