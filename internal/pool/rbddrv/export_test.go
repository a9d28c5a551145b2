package rbddrv

import (
	"time"

	"github.com/tarn-storage/tarn/internal/pool/driver"
)

// SetPatience shortens the wait for a cluster that does not answer.
func SetPatience(d time.Duration) (restore func()) {
	was := patience
	patience = d
	return func() { patience = was }
}

// EndDaemon ends the program that serves an open device.
func EndDaemon(d driver.Device) { d.(*device).process.Stop(time.Minute) }
