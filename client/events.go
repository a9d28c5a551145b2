package client

import (
	"bufio"
	"context"
	"encoding/json"
	"iter"
	"net/http"
	"strconv"
	"strings"

	"github.com/tarn-storage/tarn/api"
	"github.com/tarn-storage/tarn/errs"
)

// Events yields every event after the given id. With follow it then waits for
// new ones until ctx ends; a broken connection is its last error, and the
// caller resumes after the last event it saw.
func (c *Client) Events(ctx context.Context, after int64, follow bool) iter.Seq2[api.Event, error] {
	return func(yield func(api.Event, error) bool) {
		q := set(nil, "after", strconv.FormatInt(after, 10))
		if !follow {
			q = set(q, "follow", "false")
		}
		h := c.transfer(nil)
		defer h.CloseIdleConnections()
		resp, err := c.send(ctx, h, request{method: http.MethodGet, path: []string{"events"}, query: q})
		if err != nil {
			yield(api.Event{}, err)
			return
		}
		defer resp.Body.Close()
		lines := bufio.NewScanner(resp.Body)
		lines.Buffer(nil, 1<<20)
		for lines.Scan() {
			text, ok := strings.CutPrefix(lines.Text(), "data: ")
			if !ok {
				continue
			}
			var ev api.Event
			if err := json.Unmarshal([]byte(text), &ev); err != nil {
				yield(api.Event{}, errs.New(errs.Internal, "client.events", "", "an event cannot be read: %w", err))
				return
			}
			if !yield(ev, nil) {
				return
			}
		}
		switch err := lines.Err(); {
		case err != nil:
			yield(api.Event{}, transportError(err))
		case follow:
			yield(api.Event{}, errs.New(errs.Unavailable, "client.events", "", "the daemon ended the stream of events"))
		}
	}
}
