package journal

import (
	"slices"
	"time"
)

// The rate is taken over the last reports of about this long.
const (
	rateWindow = 10 * time.Second
	rateGrain  = rateWindow / 20
)

// meter turns reports of work done into a rate and a time to go. A report costs
// no memory beyond the window.
type meter struct {
	done, total int64
	unit        string
	samples     []sample
}

type sample struct {
	at   time.Time
	done int64
}

func (m *meter) used() bool { return len(m.samples) > 0 }

// report notes that done of total are done at now. Work that begins anew, or in
// another unit, begins a new window.
func (m *meter) report(now time.Time, done, total int64, unit string) {
	if unit != m.unit || done < m.done {
		m.samples = m.samples[:0]
	}
	m.done, m.total, m.unit = done, total, unit
	n := len(m.samples)
	if n > 0 && now.Sub(m.samples[n-1].at) < rateGrain {
		return
	}
	m.samples = append(m.samples, sample{now, done})
	for len(m.samples) > 2 && now.Sub(m.samples[1].at) >= rateWindow {
		m.samples = slices.Delete(m.samples, 0, 1)
	}
}

// progress says how things stand at now; a stalled step's rate falls.
func (m *meter) progress(now time.Time) Progress {
	p := Progress{Done: m.done, Total: m.total, Unit: m.unit}
	first := m.samples[0]
	elapsed := now.Sub(first.at).Seconds()
	if elapsed <= 0 || m.done == first.done {
		return p
	}
	rate := float64(m.done-first.done) / elapsed
	p.Rate = int64(rate)
	if left := m.total - m.done; left > 0 {
		p.ETASeconds = int64(float64(left)/rate + 0.5)
	}
	return p
}
