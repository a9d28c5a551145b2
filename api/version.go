package api

import (
	"runtime"
	"runtime/debug"
)

// release is set by the linker in released binaries.
var release string

// Build says what the running binary was built from: the release, else the
// module's version, else the commit.
func Build() Version {
	v := Version{Version: release, Go: runtime.Version(), API: "v1"}
	info, ok := debug.ReadBuildInfo()
	if v.Version != "" || !ok {
		return v
	}
	v.Version = info.Main.Version
	if v.Version != "" && v.Version != "(devel)" {
		return v
	}
	v.Version = "devel"
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" {
			v.Version = "devel-" + s.Value[:min(12, len(s.Value))]
		}
	}
	return v
}
