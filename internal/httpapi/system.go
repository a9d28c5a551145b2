package httpapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"net/http"
	"reflect"
	"strconv"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"github.com/tarn-storage/tarn/api"
)

// heartbeat keeps a quiet event stream's connection known to be alive.
const heartbeat = 15 * time.Second

// eventPage is how many past events are read at once.
const eventPage = 1000

type bodyOnly[B any] struct{ Body B }

type events struct {
	Follow bool  `query:"follow" default:"true" doc:"Wait for new events after the newest; else end there."`
	After  int64 `query:"after" minimum:"0" doc:"Only events after this id."`
	LastID int64 `header:"Last-Event-ID" minimum:"0" doc:"As after, which wins; sent by browsers that reconnect."`
}

func (s *Server) routeSystem() {
	e := s.engine
	query(s, call("version", "GET", "/v1/version", "Say what runs"),
		func(ctx context.Context, _ *struct{}) (api.Version, error) { return e.Version(ctx), nil })
	query(s, call("doctor", "POST", "/v1/doctor", "Check the invariants, and repair what is safe if asked"),
		func(ctx context.Context, in *bodyOnly[api.Doctor]) (api.Report, error) { return e.Doctor(ctx, in.Body) })
	s.routeEvents()
	s.routeMetrics()
}

func (s *Server) routeEvents() {
	op := call("events", "GET", "/v1/events", "Stream changes as server-sent events")
	op.Description = "Every event after the given id and then new ones, until the client goes. The field \"id\" resumes, \"data\" is an Event."
	op.Responses = map[string]*huma.Response{"200": {
		Description: "The events",
		Content: map[string]*huma.MediaType{
			"text/event-stream": {Schema: s.api.OpenAPI().Components.Schemas.Schema(typeOf[api.Event](), true, "")},
		},
	}}
	huma.Register(s.api, op, func(_ context.Context, in *events) (*huma.StreamResponse, error) {
		return &huma.StreamResponse{Body: func(ctx huma.Context) {
			r, w := humago.Unwrap(ctx)
			after := in.After
			if after == 0 {
				after = in.LastID
			}
			s.streamEvents(r.Context(), w, after, in.Follow)
		}}, nil
	})
}

// streamEvents writes the events after the given id and, with follow, new ones
// until the client goes or the server stops. An error of the engine breaks the
// connection: the client reconnects and resumes.
func (s *Server) streamEvents(ctx context.Context, w http.ResponseWriter, after int64, follow bool) {
	ctx, cancel := s.untilStop(ctx)
	defer cancel()
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("Cache-Control", "no-store")
	control := http.NewResponseController(w)
	_, _ = fmt.Fprint(w, ": tarn events\n\n")
	if control.Flush() != nil {
		return
	}
	events := s.engine.Events(ctx, after)
	if !follow {
		events = s.pastEvents(ctx, after)
	}
	next := deliver(ctx, events)
	tick := time.NewTicker(heartbeat)
	defer tick.Stop()
	for {
		text := ": still here\n\n"
		select {
		case d, ok := <-next:
			if !ok || ctx.Err() != nil {
				return
			}
			data, err := json.Marshal(d.event)
			if err = errors.Join(d.err, err); err != nil {
				s.log.Error("events", "error", err)
				panic(http.ErrAbortHandler) // the end of the stream must not look like the last event
			}
			text = "id: " + strconv.FormatInt(d.event.ID, 10) + "\nevent: " + d.event.Type + "\ndata: " + string(data) + "\n\n"
		case <-tick.C:
		}
		if _, err := fmt.Fprint(w, text); err != nil || control.Flush() != nil {
			return
		}
	}
}

// pastEvents yields what there is after the given id and ends.
func (s *Server) pastEvents(ctx context.Context, after int64) iter.Seq2[api.Event, error] {
	return func(yield func(api.Event, error) bool) {
		for {
			page, err := s.engine.EventPage(ctx, after, eventPage)
			if err != nil {
				yield(api.Event{}, err)
			}
			if err != nil || len(page) == 0 {
				return
			}
			for _, ev := range page {
				after = ev.ID
				if !yield(ev, nil) {
					return
				}
			}
		}
	}
}

// delivered is one step of a stream of events.
type delivered struct {
	event api.Event
	err   error
}

// deliver sends events to the channel it returns, until ctx ends or they end,
// and closes it then.
func deliver(ctx context.Context, events iter.Seq2[api.Event, error]) <-chan delivered {
	next := make(chan delivered)
	go func() {
		defer close(next)
		for ev, err := range events {
			select {
			case next <- delivered{ev, err}:
			case <-ctx.Done():
				return
			}
		}
	}()
	return next
}

func (s *Server) routeMetrics() {
	op := call("metrics", "GET", "/metrics", "Figures for Prometheus")
	op.Responses = map[string]*huma.Response{"200": {
		Description: "Prometheus text format",
		Content:     map[string]*huma.MediaType{"text/plain": {Schema: &huma.Schema{Type: huma.TypeString}}},
	}}
	handler := s.metrics.handler()
	huma.Register(s.api, op, func(_ context.Context, _ *struct{}) (*huma.StreamResponse, error) {
		return &huma.StreamResponse{Body: func(ctx huma.Context) {
			r, w := humago.Unwrap(ctx)
			handler.ServeHTTP(w, r)
		}}, nil
	})
}

func typeOf[T any]() reflect.Type { return reflect.TypeFor[T]() }
