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
	stepBaseScrub      = "base.scrub/v1"
	stepDisksPlace     = "disks.place/v1"
	stepImageConvert   = "image.convert/v1"
	stepImageJudge     = "image.judge/v1"
	stepImageReady     = "image.ready/v1"
	stepInstanceForget = "instance.forget/v1"
	stepPoolBuild      = "pool.build/v1"
	stepPoolDefine     = "pool.define/v1"
	stepPoolForget     = "pool.forget/v1"
	stepPoolOpen       = "pool.open/v1"
	stepPoolPrepare    = "pool.prepare/v1"
	stepPoolRebuild    = "pool.rebuild/v1"
	stepPoolRefresh    = "pool.refresh/v1"
	stepSidecars       = "sidecars.write/v1"
	stepVolumeAdopt    = "volume.adopt/v1"
	stepVolumeCreate   = "volume.create/v1"
	stepVolumeDelete   = "volume.delete/v1"
	stepVolumeRelease  = "volume.release/v1"
	stepVolumeResize   = "volume.resize/v1"
)

func (e *Engine) handlers() map[string]journal.Handler[*store.Tx] {
	return map[string]journal.Handler[*store.Tx]{
		spoolStep:          e.configSpool(),
		stepBaseCopy:       e.baseCopy(),
		stepBaseEnsure:     e.baseEnsure(),
		stepBasePublish:    e.basePublish(),
		stepBaseScrub:      e.baseScrub(),
		stepDisksPlace:     e.disksPlace(),
		stepImageConvert:   e.imageConvert(),
		stepImageJudge:     e.imageJudge(),
		stepImageReady:     e.imageReady(),
		stepInstanceForget: e.instanceForget(),
		stepPoolBuild:      e.poolBuild(),
		stepPoolDefine:     e.poolDefine(),
		stepPoolForget:     e.poolForget(),
		stepPoolOpen:       e.poolOpen(),
		stepPoolPrepare:    e.poolPrepare(),
		stepPoolRebuild:    e.poolRebuild(),
		stepPoolRefresh:    e.poolRefresh(),
		stepSidecars:       e.sidecarsWrite(),
		stepVolumeAdopt:    e.volumeAdopt(),
		stepVolumeCreate:   e.volumeCreate(),
		stepVolumeDelete:   e.volumeDelete(),
		stepVolumeRelease:  e.volumeRelease(),
		stepVolumeResize:   e.volumeResize(),
	}
}
