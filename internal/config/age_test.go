package config

import (
	"strings"
	"testing"
	"time"
)

func TestAges(t *testing.T) {
	for text, want := range map[string]Age{"": 0, "1h": Age(time.Hour), "90m": Age(90 * time.Minute), "2d": Age(48 * time.Hour), "forever": Forever} {
		c, err := parse(strings.NewReader("keep_operations: " + text))
		if err != nil || c.KeepOperations != want {
			t.Errorf("keep_operations: %s gave %v, %v, want %v", text, time.Duration(c.KeepOperations), err, time.Duration(want))
		}
	}
}
