package disk

import "cmp"

// SourceField names one thing that a pool is told of its storage, as its flag
// is called.
type SourceField string

// The fields: a pool's path and those of PoolSource.
const (
	FieldPath        SourceField = "path"
	FieldDevice      SourceField = "source-device"
	FieldFileSystem  SourceField = "file-system"
	FieldCopyOnWrite SourceField = "copy-on-write"
	FieldHost        SourceField = "source-host"
	FieldExport      SourceField = "source-path"
	FieldVolumeGroup SourceField = "vg"
	FieldThinPool    SourceField = "thin-pool"
	FieldWipe        SourceField = "wipe"
	FieldCephPool    SourceField = "rbd-pool"
	FieldCephConf    SourceField = "ceph-conf"
	FieldCephUser    SourceField = "rbd-user"
	FieldSecretFile  SourceField = "rbd-secret-file"
)

// SourceFields lists every field, in the order in which people are told of them.
func SourceFields() []SourceField {
	return []SourceField{FieldPath, FieldCopyOnWrite, FieldDevice, FieldFileSystem, FieldHost, FieldExport, FieldVolumeGroup, FieldThinPool, FieldWipe,
		FieldCephPool, FieldCephConf, FieldCephUser, FieldSecretFile}
}

// Field returns where the pool keeps field f; nil for one that is none.
func (p *Pool) Field(f SourceField) *string {
	s := &p.Source
	switch f {
	case FieldPath:
		return &p.Path
	case FieldDevice:
		return &s.Device
	case FieldFileSystem:
		return &s.FileSystem
	case FieldCopyOnWrite:
		return &s.CopyOnWrite
	case FieldHost:
		return &s.Host
	case FieldExport:
		return &s.Export
	case FieldVolumeGroup:
		return &s.VolumeGroup
	case FieldThinPool:
		return &s.ThinPool
	case FieldWipe:
		return &s.Wipe
	case FieldCephPool:
		return &s.CephPool
	case FieldCephConf:
		return &s.CephConf
	case FieldCephUser:
		return &s.CephUser
	case FieldSecretFile:
		return &s.SecretFile
	}
	return nil
}

// Storage is s without what does not tell one storage from another: how it is
// built, written and given back, and who asks for it.
func (s PoolSource) Storage() PoolSource {
	s.FileSystem, s.CopyOnWrite, s.Wipe, s.CephUser, s.SecretFile = "", "", "", "", ""
	return s
}

// Like is s with what kept says of how the storage is written and given back,
// where s does not.
func (s PoolSource) Like(kept PoolSource) PoolSource {
	s.CopyOnWrite = cmp.Or(s.CopyOnWrite, kept.CopyOnWrite)
	s.Wipe = cmp.Or(s.Wipe, kept.Wipe)
	return s
}

// String names the storage in one word; it is empty for the zero PoolSource.
func (s PoolSource) String() string {
	switch {
	case s.Device != "":
		return s.Device
	case s.Host != "" || s.Export != "":
		return s.Host + ":" + s.Export
	case s.ThinPool != "":
		return s.VolumeGroup + "/" + s.ThinPool
	case s.VolumeGroup != "":
		return s.VolumeGroup
	}
	return s.CephPool
}

// Where says where the pool's storage is: its path, or its source where there
// are no files.
func (p Pool) Where() string {
	if p.Path != "" {
		return p.Path
	}
	return p.Source.String()
}
