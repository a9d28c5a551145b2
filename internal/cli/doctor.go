package cli

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/tarn-storage/tarn/api"
	"github.com/tarn-storage/tarn/client"
	"github.com/tarn-storage/tarn/internal/exit"
)

func (a *app) doctorCommand() *cobra.Command {
	var d api.Doctor
	cmd := a.command(verb{
		use: "doctor", short: "Check that records and storage agree",
		long: "Each problem is explained in a sentence. --repair mends what is safe and quarantines what is not; it\n" +
			"deletes nothing but what its own ended operations left. Exit status 0 when there are no problems or --repair\n" +
			"mended all of them, 10 when some are left.",
		example: "tarn doctor\ntarn doctor --repair --pool fast",
		run: func(ctx context.Context, c *client.Client, _ []string) error {
			r, err := c.Doctor(ctx, d)
			if err != nil {
				return err
			}
			if err := a.printReport(r); err != nil {
				return err
			}
			if repaired(r) < len(r.Problems) {
				return exit.Problems
			}
			return nil
		},
	})
	cmd.Flags().BoolVar(&d.Repair, "repair", false, "mend what is safe, quarantine what is not")
	cmd.Flags().StringVar(&d.Pool, "pool", "", "only this `POOL`")
	a.completeFlag(cmd, "pool", poolNames)
	return cmd
}

// repaired counts the problems that are none any more.
func repaired(r api.Report) (n int) {
	for _, p := range r.Problems {
		if p.Repaired {
			n++
		}
	}
	return n
}

func (a *app) printReport(r api.Report) error {
	if a.output == "json" {
		if r.Problems == nil {
			r.Problems = []api.Problem{}
		}
		return printJSON(a.Out, r)
	}
	if a.quiet {
		return printList(a, api.List[api.Problem]{Items: r.Problems}, func(p api.Problem) string { return p.Object }, "", nil)
	}
	for _, p := range r.Problems {
		if err := a.say("%s %s: %s", p.Invariant, p.Object, p.Detail); err != nil {
			return err
		}
		text := "    repair: "
		if p.Repaired {
			text = "    repaired: "
		}
		if p.Repair != "" {
			if err := a.say("%s%s", text, p.Repair); err != nil {
				return err
			}
		}
	}
	for _, n := range r.Notes {
		if err := a.say("note: %s", n); err != nil {
			return err
		}
	}
	switch n := repaired(r); {
	case len(r.Problems) == 0:
		return a.say("no problems")
	case n > 0:
		return a.say("%d of %d problems repaired", n, len(r.Problems))
	}
	return nil
}
