package httpapi

import (
	"context"
	"log/slog"
	"net/http"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/tarn-storage/tarn/api"
)

// scrapeTimeout bounds what one scrape asks of the engine.
const scrapeTimeout = 10 * time.Second

// metrics holds the daemon's figures. Those of pools and operations are asked
// of the engine at each scrape; the rest is counted here.
type metrics struct {
	registry *prometheus.Registry
	bytes    prometheus.Counter
	requests *prometheus.HistogramVec
}

func newMetrics(e Engine, log *slog.Logger) *metrics {
	m := &metrics{
		registry: prometheus.NewRegistry(),
		bytes: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "tarn_import_bytes_total", Help: "Bytes delivered by image sources.",
		}),
		requests: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "tarn_request_duration_seconds", Help: "Time to answer, by route and status.",
			Buckets: []float64{.001, .005, .02, .1, .5, 2, 10, 60, 600},
		}, []string{"route", "status"}),
	}
	m.registry.MustRegister(m.bytes, m.requests, stock{engine: e, log: log},
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

func (m *metrics) handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{})
}

func (m *metrics) imported(n int64) { m.bytes.Add(float64(n)) }

func (m *metrics) request(route string, status int, took time.Duration) {
	m.requests.WithLabelValues(route, strconv.Itoa(status)).Observe(took.Seconds())
}

// stock collects what the engine has.
type stock struct {
	engine Engine
	log    *slog.Logger
}

func perPool(name, help string) *prometheus.Desc {
	return prometheus.NewDesc("tarn_pool_"+name+"_bytes", help, []string{"pool", "driver", "domain"}, nil)
}

func perName(name, help string) *prometheus.Desc {
	return prometheus.NewDesc("tarn_pool_"+name, help, []string{"pool"}, nil)
}

// states are those that a pool is shown in, but for what passes.
var states = []string{"active", "degraded", "full", "inactive"}

var (
	capacityDesc    = perPool("capacity", "Capacity of the pool's capacity domain.")
	provisionedDesc = perPool("provisioned", "Sum of the pool's virtual sizes.")
	committedDesc   = perPool("committed", "What the domain's volumes may come to need.")
	allocatedDesc   = perPool("allocated", "Measured use of the pool; information only.")
	foreignDesc     = perPool("foreign", "Used in the domain by others than tarn.")
	availableDesc   = perPool("available", "What a new volume may still be promised.")
	freeDesc        = perPool("free", "Measured as free in the domain.")
	activeDesc      = perName("active", "1 when the pool serves: it is active or full.")
	stateDesc       = prometheus.NewDesc("tarn_pool_state", "1 for the state that the pool is in.", []string{"pool", "state"}, nil)
	dataDesc        = perName("data_ratio", "Share of a thin pool's data that is used.")
	metadataDesc    = perName("metadata_ratio", "Share of a thin pool's metadata that is used.")
	fullDesc        = perName("time_to_full_seconds", "Time until the pool is full, at the mean rate of the last ten minutes; absent where it does not fill or that is not known.")
	operationsDesc  = prometheus.NewDesc("tarn_operations", "Operations that need time or a person, by kind and state.", []string{"kind", "state"}, nil)
)

// Describe sends nothing on purpose: which series exist depends on the pools.
func (stock) Describe(chan<- *prometheus.Desc) {}

// Collect asks the engine. A failure is logged and its series are left out.
func (c stock) Collect(ch chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), scrapeTimeout)
	defer cancel()
	pools, err := c.engine.Pools(ctx, api.Page{Limit: -1})
	if err != nil {
		c.log.Error("metrics", "error", err)
	}
	for _, p := range pools.Items {
		for desc, v := range map[*prometheus.Desc]int64{
			capacityDesc: p.Capacity, provisionedDesc: p.Provisioned, committedDesc: p.Committed,
			allocatedDesc: p.Allocated, foreignDesc: p.Foreign, freeDesc: p.Free, availableDesc: p.Available,
		} {
			ch <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, float64(v), p.Name, p.Driver, p.Domain)
		}
		health(ch, p)
	}
	c.operations(ctx, ch)
}

// health sends what state a pool is in, and what becomes of it.
func health(ch chan<- prometheus.Metric, p api.Pool) {
	one := map[bool]float64{true: 1}
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, append([]string{p.Name}, labels...)...)
	}
	gauge(activeDesc, one[p.State == "active" || p.State == "full"])
	for _, s := range states {
		gauge(stateDesc, one[p.State == s], s)
	}
	if p.DataPercent != nil && p.MetadataPercent != nil {
		gauge(dataDesc, *p.DataPercent/100)
		gauge(metadataDesc, *p.MetadataPercent/100)
	}
	if p.TimeToFull > 0 {
		gauge(fullDesc, float64(p.TimeToFull))
	}
}

func (c stock) operations(ctx context.Context, ch chan<- prometheus.Metric) {
	for _, state := range []string{"queued", "running", "undoing", "failed", "needs_operator"} {
		list, err := c.engine.Operations(ctx, state, api.Page{Limit: -1})
		if err != nil {
			c.log.Error("metrics", "error", err)
			return
		}
		kinds := map[string]int{}
		for _, op := range list.Items {
			kinds[op.Kind]++
		}
		for kind, n := range kinds {
			ch <- prometheus.MustNewConstMetric(operationsDesc, prometheus.GaugeValue, float64(n), kind, state)
		}
	}
}
