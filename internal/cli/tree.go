package cli

import "github.com/spf13/cobra"

// Tree returns every command with its flags and texts, connected to nothing:
// the reference and the checks of documented command lines are made from it.
func Tree() *cobra.Command { return (&app{output: "table"}).root() }
