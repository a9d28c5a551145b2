package httpapi

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/tarn-storage/tarn/api"
)

// shown are pools whose health is collected.
type shown []api.Pool

func (shown) Describe(chan<- *prometheus.Desc) {}

func (s shown) Collect(ch chan<- prometheus.Metric) {
	for _, p := range s {
		health(ch, p)
	}
}

// TestHealthMetrics: there is one series for each state, and one for a figure
// where it is known; ratios are of one.
func TestHealthMetrics(t *testing.T) {
	data, metadata := 50.0, 80.0
	r := prometheus.NewPedanticRegistry()
	r.MustRegister(shown{
		{Name: "a", State: "active"},
		{Name: "d", State: "degraded", TimeToFull: 1},
		{Name: "f", State: "full", DataPercent: &data, MetadataPercent: &metadata, TimeToFull: 90},
		{Name: "i", State: "inactive"},
		{Name: "x", State: "deleting"},
	})
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, f := range families {
		for _, m := range f.GetMetric() {
			labels := ""
			for _, l := range m.GetLabel() {
				labels += " " + l.GetValue()
			}
			if v := m.GetGauge().GetValue(); v != 0 {
				got = append(got, fmt.Sprintf("%s%s %v", strings.TrimPrefix(f.GetName(), "tarn_pool_"), labels, v))
			}
		}
		if n := len(f.GetMetric()); f.GetName() == "tarn_pool_state" && n != 5*len(states) {
			t.Errorf("%d series of states, want one for each of %d pools and %d states", n, 5, len(states))
		}
	}
	slices.Sort(got)
	want := []string{"active a 1", "active f 1", "data_ratio f 0.5", "metadata_ratio f 0.8", "state a active 1", "state d degraded 1",
		"state f full 1", "state i inactive 1", "time_to_full_seconds d 1", "time_to_full_seconds f 90"}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}
