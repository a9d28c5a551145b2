package engine

import (
	"testing"
	"time"

	"github.com/tarn-storage/tarn/internal/disk"
)

func TestTimeToFull(t *testing.T) {
	start := time.Unix(1e9, 0)
	at := func(s int, free int64, metadata float64) sample {
		return sample{start.Add(time.Duration(s) * time.Second), free, metadata}
	}
	for name, c := range map[string]struct {
		samples []sample
		floor   int64
		mark    float64
		want    time.Duration // 0: not known
	}{
		"nothing is known":            {},
		"less than a minute is known": {samples: []sample{at(0, 1000, 0), at(59, 900, 0)}},
		"it fills":                    {samples: []sample{at(0, 1000, 0), at(60, 900, 0)}, want: 9 * time.Minute},
		"down to the reserve":         {samples: []sample{at(0, 1000, 0), at(60, 900, 0)}, floor: 600, want: 3 * time.Minute},
		"the mean rate counts":        {samples: []sample{at(0, 1000, 0), at(60, 200, 0), at(120, 800, 0)}, want: 8 * time.Minute},
		"it stands":                   {samples: []sample{at(0, 1000, 0), at(60, 1000, 0)}},
		"it shrinks":                  {samples: []sample{at(0, 900, 0), at(60, 1000, 0)}},
		"it is full":                  {samples: []sample{at(0, 1000, 0), at(60, 500, 0)}, floor: 500},
		"metadata comes first":        {samples: []sample{at(0, 1000, 50), at(60, 900, 60)}, mark: 80, want: 2 * time.Minute},
		"data comes first":            {samples: []sample{at(0, 1000, 50), at(60, 500, 50.1)}, mark: 80, want: time.Minute},
		"metadata alone":              {samples: []sample{at(0, 900, 50), at(60, 900, 55)}, mark: 80, want: 5 * time.Minute},
		"metadata past its mark":      {samples: []sample{at(0, 900, 80), at(60, 900, 85)}, mark: 80},
		"in a thousand years":         {samples: []sample{at(0, 1<<50, 0), at(600, 1<<50-1<<16, 0)}},
	} {
		got, known := timeToFull(c.samples, c.floor, c.mark)
		if got != c.want || known != (c.want > 0) {
			t.Errorf("%s: %v, known: %v; want %v", name, got, known, c.want)
		}
	}
}

// TestTrendKeepsItsWindow: samples are taken now and then however often somebody
// looks, and old ones do not count.
func TestTrendKeepsItsWindow(t *testing.T) {
	var g gauges
	const id = disk.DomainID("d")
	start := time.Unix(1e9, 0)
	var trend []sample
	for s := range 3600 {
		trend = g.trend(id, sample{start.Add(time.Duration(s) * time.Second), int64(s), 0})
	}
	first, last := trend[0], trend[len(trend)-1]
	if span := last.at.Sub(first.at); span > trendWindow || span < trendWindow-lookEvery {
		t.Errorf("the trend spans %v, want %v", span, trendWindow)
	}
	if last.free != 3599 {
		t.Errorf("the last sample is the one of second %d, want 3599", last.free)
	}
	if most := int(trendWindow/(lookEvery/2)) + 2; len(trend) > most {
		t.Errorf("%d samples, want %d at most", len(trend), most)
	}
}
