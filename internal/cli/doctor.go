package cli

import (
	"context"
	"encoding/json"

	"github.com/spf13/cobra"

	"github.com/tarn-storage/tarn/api"
	"github.com/tarn-storage/tarn/client"
	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/exit"
)

func (a *app) doctorCommand() *cobra.Command {
	var d api.Doctor
	var s scrubbing
	cmd := a.command(verb{
		use: "doctor", short: "Check that records and storage agree",
		long: "Each problem is explained in a sentence. --repair mends what is safe and quarantines what is not; it\n" +
			"deletes nothing but what its own ended operations left. Exit status 0 when there are no problems or --repair\n" +
			"mended all of them, 10 when some are left.\n" +
			"--scrub first reads every base and compares it with its digest. A corrupt one is quarantined: nothing\n" +
			"is made from it, and what reads from it is neither attached nor exported, until --scrub --repair has made it\n" +
			"again, from another pool's copy or from where its image came. That waits for the disks that read from it to be\n" +
			"detached; the corrupt bytes are kept in the pool's quarantine.",
		example: "tarn doctor\ntarn doctor --repair --pool fast\ntarn doctor --scrub --rate 20M\ntarn doctor --scrub --repair\ntarn doctor --scrub --dry-run",
		run: func(ctx context.Context, c *client.Client, _ []string) error {
			if s.dryRun && !s.wanted {
				return usage("--dry-run is for --scrub; without --repair doctor changes nothing")
			}
			found, err := s.run(a, ctx, c, d)
			if err != nil || s.dryRun {
				return err
			}
			r, err := c.Doctor(ctx, d)
			if err != nil {
				return err
			}
			r.Problems, r.Notes = append(found.Problems, r.Problems...), append(found.Notes, r.Notes...)
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
	cmd.Flags().BoolVar(&s.wanted, "scrub", false, "read every base and quarantine those that are corrupt")
	cmd.Flags().StringVar(&s.rate, "rate", "64M", "read up to `SIZE` a second with --scrub")
	cmd.Flags().BoolVar(&s.dryRun, "dry-run", false, "print the plan of --scrub and change nothing")
	a.completeFlag(cmd, "pool", poolNames)
	return cmd
}

// scrubbing is what --scrub, --rate and --dry-run ask for.
type scrubbing struct {
	wanted bool
	rate   string
	dryRun bool
}

// run scrubs if that is wanted, shows the progress and returns what was found.
func (s scrubbing) run(a *app, ctx context.Context, c *client.Client, d api.Doctor) (r api.Report, err error) {
	if !s.wanted {
		return r, nil
	}
	rate, err := parseSize("--rate", s.rate)
	if err != nil {
		return r, err
	}
	start := func(ctx context.Context, o api.Options) (api.Outcome, error) {
		return c.Scrub(ctx, o, api.Scrub{Pool: d.Pool, Rate: rate, Repair: d.Repair})
	}
	err = a.change(ctx, c, changing{Options: api.Options{DryRun: s.dryRun}}, start, func(op api.Operation) error {
		if err := json.Unmarshal(op.Result, &r); err != nil {
			return errs.New(errs.Internal, "cli", op.ID, "the result of the scrub does not decode: %w", err)
		}
		return nil
	})
	return r, err
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
