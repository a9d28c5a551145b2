package engine

import (
	"testing"
	"time"

	"github.com/tarn-storage/tarn/internal/disk"
)

// TestForgetKeepsTheLastMeasurement: an operation that decides while a domain is
// measured anew does not see a domain without space.
func TestForgetKeepsTheLastMeasurement(t *testing.T) {
	const id = disk.DomainID("d")
	var g gauges
	want := measured{capacity: 100, free: 40, foreign: 7}
	g.keep(id, want)
	g.get(id).at = time.Unix(1, 0)
	g.forget(id)
	if got := g.last(id); got != want {
		t.Errorf("after forget the last measurement is %+v, want %+v", got, want)
	}
	if at := g.get(id).at; !at.IsZero() {
		t.Errorf("after forget the sample is of %v, want none", at)
	}
}
