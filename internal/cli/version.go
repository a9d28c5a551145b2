package cli

import (
	"context"
	"os"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"

	"github.com/tarn-storage/tarn/api"
	"github.com/tarn-storage/tarn/client"
	"github.com/tarn-storage/tarn/errs"
)

// versions is what "tarn version -o json" prints. Server is null when no
// daemon answers.
type versions struct {
	Client api.Version  `json:"client"`
	Server *api.Version `json:"server"`
}

func (a *app) versionCommand() *cobra.Command {
	return a.command(verb{
		use: "version", short: "Print the versions of tarn and of the daemon", long: "Without a daemon only its own.", example: "tarn version\ntarn version -o json",
		run: func(ctx context.Context, c *client.Client, _ []string) error {
			v := versions{Client: api.Build()}
			server := "no daemon answers"
			if s, err := c.Version(ctx); err == nil {
				v.Server = &s
				server = s.Version + " (" + s.Go + ")"
			}
			return a.printObject(v, v.Client.Version, []field{{"tarn", v.Client.Version + " (" + v.Client.Go + ")"}, {"tarnd", server}})
		},
	})
}

// manCommand writes the manual pages; packages are built with it.
func manCommand() *cobra.Command {
	return &cobra.Command{
		Use: "man DIR", Hidden: true, Short: "Write the manual pages into a directory",
		Long: "Write the manual pages into a directory.", Example: "  tarn man /usr/local/share/man/man1",
		Args: exactly([]string{"DIR"}),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := os.MkdirAll(args[0], 0o755); err != nil {
				return fileError(args[0], err)
			}
			root := cmd.Root()
			root.DisableAutoGenTag = true
			header := &doc.GenManHeader{Section: "1", Source: "tarn " + api.Build().Version, Manual: "tarn"}
			return errs.Wrap(doc.GenManTree(root, header, args[0]), "cli", args[0])
		},
	}
}
