package cli

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/tarn-storage/tarn/api"
	"github.com/tarn-storage/tarn/client"
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
