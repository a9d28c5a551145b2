package httpapi

import (
	"encoding/json"

	"github.com/tarn-storage/tarn/api"
)

// examples are requests as they may be sent, by the name of their schema. A
// test validates each against the description.
var examples = map[string]any{
	"PoolCreate":     api.PoolCreate{Name: "fast", Driver: "dir", Path: "/srv/tarn/fast", Overcommit: new(1.5), Reserve: "5%"},
	"PoolImport":     api.PoolImport{Driver: "dir", Path: "/srv/tarn/fast"},
	"PoolBuild":      api.PoolBuild{},
	"PoolSet":        api.PoolSet{Name: new("faster"), ImageFormats: &[]string{"raw", "qcow2"}},
	"CacheAdd":       api.CacheAdd{Image: "debian12", Pool: "fast"},
	"CachePrune":     api.CachePrune{OlderThan: "720h"},
	"CacheUnpin":     api.CacheUnpin{Image: "debian12", Pool: "fast"},
	"VolumeAdopt":    api.VolumeAdopt{Pool: "fast", Name: "old.qcow2", Format: "qcow2", Instance: "web1"},
	"Scrub":          api.Scrub{Rate: 100 << 20, Repair: true},
	"Rename":         api.Rename{Name: "debian-12"},
	"InstanceCreate": api.InstanceCreate{Name: "web1", Disks: []api.DiskSpec{{Role: "root", Image: "debian12", Size: 20 << 30}, {Role: "data", Size: 100 << 30, Pool: "fast"}}},
	"DiskCreate":     api.DiskCreate{Instance: "web1", Disk: api.DiskSpec{Role: "data", Size: 50 << 30, FS: "xfs"}},
	"DiskResize":     api.DiskResize{By: 10 << 30},
	"Attach":         api.Attach{As: "libvirt", Target: "vdb"},
	"Detach":         api.Detach{Force: true},
	"Doctor":         api.Doctor{Repair: true},
}

// describe renders the OpenAPI description of all routes registered so far,
// with examples.
func describe(s *Server) ([]byte, error) {
	schemas := s.api.OpenAPI().Components.Schemas.Map()
	for name, example := range examples {
		text, err := json.Marshal(example)
		if err != nil {
			return nil, err
		}
		var plain any
		if err := json.Unmarshal(text, &plain); err != nil {
			return nil, err
		}
		if schema := schemas[name]; schema != nil {
			schema.Examples = []any{plain}
		}
	}
	return json.Marshal(s.api.OpenAPI())
}
