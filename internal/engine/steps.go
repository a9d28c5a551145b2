package engine

import (
	"github.com/tarn-storage/tarn/internal/journal"
	"github.com/tarn-storage/tarn/internal/store"
)

// The step kinds of this build. A kind's name and version are in every journal
// that ever held one: a changed meaning is a new version.
const (
	stepBaseCopy       = "base.copy/v1"
	stepBaseEnsure     = "base.ensure/v1"
	stepBasePublish    = "base.publish/v1"
	stepDisksPlace     = "disks.place/v1"
	stepImageConvert   = "image.convert/v1"
	stepImageJudge     = "image.judge/v1"
	stepImageReady     = "image.ready/v1"
	stepInstanceForget = "instance.forget/v1"
	stepPoolForget     = "pool.forget/v1"
	stepPoolOpen       = "pool.open/v1"
	stepPoolPrepare    = "pool.prepare/v1"
	stepPoolRebuild    = "pool.rebuild/v1"
	stepSidecars       = "sidecars.write/v1"
	stepVolumeCreate   = "volume.create/v1"
	stepVolumeDelete   = "volume.delete/v1"
	stepVolumeResize   = "volume.resize/v1"
)

func (e *Engine) handlers() map[string]journal.Handler[*store.Tx] {
	return map[string]journal.Handler[*store.Tx]{
		spoolStep:          e.configSpool(),
		stepBaseCopy:       e.baseCopy(),
		stepBaseEnsure:     e.baseEnsure(),
		stepBasePublish:    e.basePublish(),
		stepDisksPlace:     e.disksPlace(),
		stepImageConvert:   e.imageConvert(),
		stepImageJudge:     e.imageJudge(),
		stepImageReady:     e.imageReady(),
		stepInstanceForget: e.instanceForget(),
		stepPoolForget:     e.poolForget(),
		stepPoolOpen:       e.poolOpen(),
		stepPoolPrepare:    e.poolPrepare(),
		stepPoolRebuild:    e.poolRebuild(),
		stepSidecars:       e.sidecarsWrite(),
		stepVolumeCreate:   e.volumeCreate(),
		stepVolumeDelete:   e.volumeDelete(),
		stepVolumeResize:   e.volumeResize(),
	}
}
