package cli

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/tarn-storage/tarn/client"
)

func (a *app) eventsCommand() *cobra.Command {
	var follow bool
	var after int64
	cmd := a.command(verb{
		use: "events", short: "Print what changed",
		long:    "With -o json one event is one line. --after resumes behind an event that was seen.",
		example: "tarn events --follow\ntarn events --after 1200 -o json",
		run: func(ctx context.Context, c *client.Client, _ []string) error {
			for ev, err := range c.Events(ctx, after, follow) {
				if ctx.Err() != nil {
					return nil // interrupted: the normal end of --follow
				}
				if err != nil {
					return err
				}
				line := fmt.Sprintf("%d  %s  %s  %s", ev.ID, when(ev.Time), ev.Type, subject(ev.Subject))
				switch {
				case a.output == "json":
					text, err := json.Marshal(ev)
					if err != nil {
						return err
					}
					line = string(text)
				case a.quiet:
					line = fmt.Sprint(ev.ID)
				}
				if _, err := fmt.Fprintln(a.Out, line); err != nil {
					return wrote(err)
				}
			}
			return nil
		},
	})
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "wait for new events until interrupted")
	cmd.Flags().Int64Var(&after, "after", 0, "only events after this `ID`")
	return cmd
}
