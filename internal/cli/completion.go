package cli

import (
	"context"
	"time"

	"github.com/spf13/cobra"

	"github.com/tarn-storage/tarn/api"
	"github.com/tarn-storage/tarn/client"
)

// completionTime bounds how long a shell waits for names.
const completionTime = 2 * time.Second

// names lists the objects that an argument may name.
type names = func(context.Context, *client.Client) ([]string, error)

var everything = api.Page{Limit: -1}

func namesOf[T any](l api.List[T], err error, name func(T) string) ([]string, error) {
	all := make([]string, 0, len(l.Items))
	for _, item := range l.Items {
		all = append(all, name(item))
	}
	return all, err
}

func poolNames(ctx context.Context, c *client.Client) ([]string, error) {
	l, err := c.Pools(ctx, everything)
	return namesOf(l, err, func(p api.Pool) string { return p.Name })
}

func driverNames(ctx context.Context, c *client.Client) ([]string, error) {
	l, err := c.Drivers(ctx)
	return namesOf(l, err, func(d api.Driver) string { return d.Name })
}

func imageNames(ctx context.Context, c *client.Client) ([]string, error) {
	l, err := c.Images(ctx, everything)
	return namesOf(l, err, func(i api.Image) string { return i.Name })
}

func instanceNames(ctx context.Context, c *client.Client) ([]string, error) {
	l, err := c.Instances(ctx, everything)
	return namesOf(l, err, func(i api.Instance) string { return i.Name })
}

func diskNames(ctx context.Context, c *client.Client) ([]string, error) {
	l, err := c.Disks(ctx, "", everything)
	return namesOf(l, err, diskName)
}

func volumeNames(ctx context.Context, c *client.Client) ([]string, error) {
	l, err := c.Volumes(ctx, "", everything)
	return namesOf(l, err, func(v api.Volume) string { return v.ID })
}

func operationNames(ctx context.Context, c *client.Client) ([]string, error) {
	l, err := c.Operations(ctx, "", everything)
	return namesOf(l, err, func(o api.Operation) string { return o.ID })
}

// completion completes the positional arguments, each with its names; a nil
// entry completes file names.
func (a *app) completion(args []names) cobra.CompletionFunc {
	return func(cmd *cobra.Command, given []string, _ string) ([]string, cobra.ShellCompDirective) {
		if len(given) >= len(args) {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		if args[len(given)] == nil {
			return nil, cobra.ShellCompDirectiveDefault
		}
		return a.ask(cmd.Context(), args[len(given)])
	}
}

// completeFlag completes a flag's value.
func (a *app) completeFlag(cmd *cobra.Command, flag string, n names) {
	_ = cmd.RegisterFlagCompletionFunc(flag, func(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
		return a.ask(cmd.Context(), n)
	})
}

func (a *app) ask(ctx context.Context, n names) ([]string, cobra.ShellCompDirective) {
	c, err := a.client()
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	ctx, cancel := context.WithTimeout(ctx, completionTime)
	defer cancel()
	all, err := n(ctx, c)
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	return all, cobra.ShellCompDirectiveNoFileComp
}

// none is for arguments that cannot be completed, such as a new name.
func none(context.Context, *client.Client) ([]string, error) { return nil, nil }

func completionCommand() *cobra.Command {
	shells := []string{"bash", "zsh", "fish"}
	return &cobra.Command{
		Use:   "completion bash|zsh|fish",
		Short: "Print a script that teaches a shell to complete tarn's commands",
		Long:  "Print a script that teaches a shell to complete tarn's commands.\n\nObject names are completed too, by asking the daemon.",
		Example: "  source <(tarn completion bash)\n  tarn completion zsh > \"${fpath[1]}/_tarn\"\n" +
			"  tarn completion fish > ~/.config/fish/completions/tarn.fish",
		ValidArgs: shells,
		Args:      exactly([]string{"SHELL"}),
		RunE: func(cmd *cobra.Command, args []string) error {
			root, out := cmd.Root(), cmd.OutOrStdout()
			switch args[0] {
			case "bash":
				return wrote(root.GenBashCompletionV2(out, true))
			case "zsh":
				return wrote(root.GenZshCompletion(out))
			case "fish":
				return wrote(root.GenFishCompletion(out, true))
			}
			return usage("there is no completion for %q", args[0]).WithHint("one of bash, zsh, fish")
		},
	}
}
