//go:build race

package hostexec

// A process with the race detector waits a second at its end unless it is told
// not to; a test starts hundreds of workers.
func init() { detector = []string{"GORACE=atexit_sleep_ms=0"} }
