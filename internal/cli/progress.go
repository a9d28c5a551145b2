package cli

import (
	"fmt"
	"strings"
	"time"

	"golang.org/x/term"

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

// bar is a progress bar on standard error, a line that is written over.
type bar struct {
	app  *app
	open bool // the line stands there
}

func (b *bar) show(what string, p api.Progress) {
	switch {
	case p.Total > 0:
		part := min(max(float64(p.Done)/float64(p.Total), 0), 1)
		full := int(part * barWidth)
		b.line(fmt.Sprintf("%s [%s%s] %d%% %s", what, strings.Repeat("=", full), strings.Repeat("-", barWidth-full), int(part*100), pace(p)))
	case p.Done > 0:
		b.line(fmt.Sprintf("%s: %s %s", what, amount(p.Done, p.Unit), pace(p)))
	}
}

const barWidth = 30

// line shows text in place of the line before, as far as one line has room.
func (b *bar) line(text string) {
	if width, _, err := term.GetSize(int(b.app.Err.Fd())); err == nil && width > 0 && len(text) >= width {
		text = text[:width-1]
	}
	fmt.Fprintf(b.app.Err, "\r\x1b[K%s", text)
	b.open = true
}

func (b *bar) close() {
	if b.open {
		fmt.Fprint(b.app.Err, "\r\x1b[K")
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
