package tarntest_test

import (
	"strings"
	"testing"

	"github.com/tarn-storage/tarn/api"
	"github.com/tarn-storage/tarn/test/system/tarntest"
)

func TestDaemonStartsStopsAndDies(t *testing.T) {
	d := tarntest.Start(t, t.TempDir())
	if v := tarntest.Get[map[string]any](d, "version"); len(v) == 0 {
		t.Errorf("version: got nothing")
	}
	d.Restart()
	d.AssertHealthy()
	d.AssertSettled()
	d.Kill()
	if r := d.Run("pool", "list"); r.Status != 8 || r.Stderr == "" {
		t.Errorf("want status 8 and a line without a daemon, got %v", r)
	}
	d.Start()
	if l := tarntest.Get[api.List[api.Pool]](d, "pool", "list"); len(l.Items) != 0 {
		t.Errorf("pools: got %v, want none", l.Items)
	}
}

func TestRefusedStartSaysWhy(t *testing.T) {
	dir := t.TempDir()
	tarntest.Start(t, dir)
	err := tarntest.New(t, dir).TryStart()
	if err == nil || !strings.Contains(err.Error(), "tarnd: ") {
		t.Errorf("second daemon on the same state directory: got %v, want its own words", err)
	}
}
