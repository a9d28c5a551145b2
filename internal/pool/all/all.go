// Package all is the explicit list of the pool technologies in this build. It
// refuses registries: what is not in the list does not exist.
package all

import (
	"github.com/tarn-storage/tarn/internal/pool/dirdrv"
	"github.com/tarn-storage/tarn/internal/pool/driver"
	"github.com/tarn-storage/tarn/internal/pool/fsdrv"
	"github.com/tarn-storage/tarn/internal/pool/lvmdrv"
	"github.com/tarn-storage/tarn/internal/pool/netfsdrv"
	"github.com/tarn-storage/tarn/internal/pool/ploopdrv"
	"github.com/tarn-storage/tarn/internal/pool/rbddrv"
)

// Types returns every pool technology, in the order of the documentation.
func Types() []driver.Type {
	return []driver.Type{dirdrv.Type, fsdrv.Type, netfsdrv.Type, rbddrv.Type, lvmdrv.Logical, lvmdrv.Thin, ploopdrv.Type}
}
