package config

import (
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/tarn-storage/tarn/errs"
)

// Age is for how long something is kept: 30d, 36h or forever.
type Age time.Duration

// Forever is longer than anything lasts.
const Forever = Age(math.MaxInt64)

// minAge is the least that request ids must be answered for: who repeats a
// request has come back by then.
const minAge = Age(time.Hour)

// UnmarshalText reads an age of an hour or more.
func (a *Age) UnmarshalText(b []byte) error {
	text := string(b)
	if text == "forever" {
		*a = Forever
		return nil
	}
	d, err := time.ParseDuration(text)
	if days, ok := strings.CutSuffix(text, "d"); ok {
		var n uint64
		n, err = strconv.ParseUint(days, 10, 16)
		d = time.Duration(n) * 24 * time.Hour
	}
	if err != nil || Age(d) < minAge {
		return errs.New(errs.Invalid, "config.read", "", "%q is not an hour or more: write for example 30d, 36h or forever", text)
	}
	*a = Age(d)
	return nil
}
