package cli

import (
	"fmt"
	"sync/atomic"
	"time"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"

	"github.com/tarn-storage/tarn/api"
)

// progress shows how far one piece of work is: a bar on a terminal, now and
// then a plain line elsewhere, nothing when only ids are wanted.
type progress interface {
	show(what string, p api.Progress)
	close()
}

func (a *app) progress() progress {
	switch {
	case a.quiet || a.output == "json" && !terminal(a.Err):
		return silence{}
	case terminal(a.Err):
		return &bar{app: a}
	}
	return &plain{app: a}
}

type silence struct{}

func (silence) show(string, api.Progress) {}
func (silence) close()                    {}

// bar is a progress bar on standard error.
type bar struct {
	app  *app
	all  *mpb.Progress
	bar  *mpb.Bar
	pace atomic.Value // string; the bar is drawn by a goroutine of its own
	open bool         // a line without a bar stands there
}

func (b *bar) show(what string, p api.Progress) {
	if p.Total <= 0 {
		if p.Done > 0 {
			fmt.Fprintf(b.app.Err, "\r\x1b[K%s: %s %s", what, amount(p.Done, p.Unit), pace(p))
			b.open = true
		}
		return
	}
	b.pace.Store(" " + pace(p))
	if b.bar == nil {
		b.all = mpb.New(mpb.WithOutput(b.app.Err), mpb.WithWidth(60))
		b.bar = b.all.AddBar(0, // a bar's total can change only if it begins without one
			mpb.BarRemoveOnComplete(),
			mpb.PrependDecorators(decor.Name(what+" ")),
			mpb.AppendDecorators(decor.Percentage(), decor.Any(func(decor.Statistics) string { return b.pace.Load().(string) })))
	}
	b.bar.SetTotal(p.Total, false)
	b.bar.SetCurrent(p.Done)
}

func (b *bar) close() {
	if b.open {
		fmt.Fprint(b.app.Err, "\r\x1b[K")
	}
	if b.bar != nil {
		b.bar.Abort(true)
		b.all.Wait()
	}
}

// plain prints a line at the tenths of the way, and at least every half minute;
// nothing about work that is done in a moment.
type plain struct {
	app         *app
	tenth       int64
	start, last time.Time
}

func (l *plain) show(what string, p api.Progress) {
	now := time.Now()
	if l.start.IsZero() {
		l.start, l.last = now, now
	}
	if now.Sub(l.start) < 2*time.Second || p.Done == 0 {
		return
	}
	tenth := l.tenth
	if p.Total > 0 {
		tenth = int64(float64(p.Done) / float64(p.Total) * 10)
	}
	if tenth <= l.tenth && now.Sub(l.last) < 30*time.Second {
		return
	}
	l.tenth, l.last = tenth, now
	fmt.Fprintf(l.app.Err, "%s: %s %s\n", what, portion(p), pace(p))
}

func (l *plain) close() {}

func amount(n int64, unit string) string {
	if unit == "bytes" {
		return size(n)
	}
	return fmt.Sprintf("%d %s", n, unit)
}

// portion says how much of how much is done.
func portion(p api.Progress) string {
	switch {
	case p.Total <= 0:
		return amount(p.Done, p.Unit)
	case p.Unit == "bytes":
		return size(p.Done) + " of " + size(p.Total)
	}
	return fmt.Sprintf("%d of %s", p.Done, amount(p.Total, p.Unit))
}

// pace says how fast and how long still.
func pace(p api.Progress) string {
	if p.Rate <= 0 {
		return ""
	}
	left := ""
	if p.Total > 0 {
		left = fmt.Sprintf(", %s left", time.Duration(p.ETASeconds)*time.Second)
	}
	return "(" + amount(p.Rate, p.Unit) + "/s" + left + ")"
}
