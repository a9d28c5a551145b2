package cli

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/tarn-storage/tarn/api"
	"github.com/tarn-storage/tarn/client"
)

func (a *app) cacheCommand() *cobra.Command {
	return a.noun("cache", "Manage the bases that disks are cloned from",
		"A base holds one image's content in one pool. It is made when the first disk there needs it, and stays\n"+
			"while anything reads from it, or it is pinned.",
		a.cacheList, a.cacheAdd, a.cacheUnpin, a.cachePrune)
}

func (a *app) cacheList() *cobra.Command {
	return a.command(verb{
		use: "list", aliases: []string{"ls"}, short: "List the bases of all pools", example: "tarn cache list",
		run: func(ctx context.Context, c *client.Client, _ []string) error {
			l, err := c.Cache(ctx, everything)
			if err != nil {
				return err
			}
			return printList(a, l, func(e api.CacheEntry) string { return e.Volume }, "POOL IMAGES STATE FORMAT SIZE ALLOCATED EXTENTS REFERENCES PINNED USED", func(e api.CacheEntry) []string {
				return []string{e.Pool, strings.Join(e.Images, ","), e.State, e.Format, size(e.VirtualSize), size(e.Allocated),
					strconv.FormatInt(e.Extents, 10), strconv.Itoa(e.References), yesNo(e.Pinned), when(e.UpdatedAt)}
			})
		},
	})
}

func (a *app) cacheAdd() *cobra.Command {
	var f changing
	var add api.CacheAdd
	cmd := f.add(a.command(verb{
		use: "add IMAGE --pool POOL", short: "Put an image's base into a pool ahead of its use", args: []string{"IMAGE"}, complete: []names{imageNames},
		example: "tarn cache add debian12 --pool fast\ntarn cache add debian12 --pool fast --pin",
		run: func(ctx context.Context, c *client.Client, args []string) error {
			add.Image = args[0]
			start := func(ctx context.Context, o api.Options) (api.Outcome, error) { return c.CacheAdd(ctx, o, add) }
			return a.change(ctx, c, f, start, a.gone("is in pool "+add.Pool))
		},
	}))
	cmd.Flags().StringVar(&add.Pool, "pool", "", "the `POOL`")
	cmd.Flags().BoolVar(&add.Pin, "pin", false, "keep it whatever its age, also one that is there already")
	_ = cmd.MarkFlagRequired("pool")
	a.completeFlag(cmd, "pool", poolNames)
	return cmd
}

func (a *app) cacheUnpin() *cobra.Command {
	var f changing
	var u api.CacheUnpin
	cmd := f.add(a.command(verb{
		use: "unpin IMAGE --pool POOL", short: "Let age decide about a base again", args: []string{"IMAGE"}, complete: []names{imageNames},
		example: "tarn cache unpin debian12 --pool fast",
		run: func(ctx context.Context, c *client.Client, args []string) error {
			u.Image = args[0]
			start := func(ctx context.Context, o api.Options) (api.Outcome, error) { return c.CacheUnpin(ctx, o, u) }
			return a.change(ctx, c, f, start, a.gone("is not pinned in pool "+u.Pool))
		},
	}))
	cmd.Flags().StringVar(&u.Pool, "pool", "", "the `POOL`")
	_ = cmd.MarkFlagRequired("pool")
	a.completeFlag(cmd, "pool", poolNames)
	return cmd
}

func (a *app) cachePrune() *cobra.Command {
	var f changing
	var older string
	var p api.CachePrune
	cmd := f.addDestroying(a.command(verb{
		use: "prune", short: "Remove bases that nothing refers to",
		long:    "An image's last copy is never removed.",
		example: "tarn cache prune --older-than 30d --yes\ntarn cache prune --dry-run",
		run: func(ctx context.Context, c *client.Client, _ []string) (err error) {
			if p.OlderThan, err = parseAge(older); err != nil {
				return err
			}
			if err := a.destroy(f, "Remove the bases that nothing refers to?"); err != nil {
				return err
			}
			start := func(ctx context.Context, o api.Options) (api.Outcome, error) { return c.CachePrune(ctx, o, p) }
			return a.change(ctx, c, f, start, func(op api.Operation) error {
				if a.output == "json" {
					return printJSON(a.Out, op)
				}
				if a.quiet {
					_, err := fmt.Fprintln(a.Out, op.ID)
					return wrote(err)
				}
				return a.say("the cache is pruned")
			})
		},
	}))
	cmd.Flags().StringVar(&older, "older-than", "", "only bases not used for so long, for example 12h or 30d")
	cmd.Flags().StringVar(&p.Pool, "pool", "", "only bases in this `POOL`")
	a.completeFlag(cmd, "pool", poolNames)
	return cmd
}

// parseAge reads a duration, with days besides Go's units, and returns it in
// Go's.
func parseAge(s string) (string, error) {
	if s == "" {
		return "", nil
	}
	text := s
	if days, ok := strings.CutSuffix(s, "d"); ok {
		n, err := strconv.ParseUint(days, 10, 16)
		if err != nil {
			return "", usage("--older-than: %q is not a duration", s).WithHint("for example 12h or 30d")
		}
		text = fmt.Sprintf("%dh", n*24)
	}
	if d, err := time.ParseDuration(text); err != nil || d < 0 {
		return "", usage("--older-than: %q is not a duration", s).WithHint("for example 12h or 30d")
	}
	return text, nil
}
