// Package cli is the command line of tarn: grammar, sizes, tables, progress
// and exit codes on top of the client. It opens the files that a user names,
// with the user's rights. It refuses to know storage: every decision about
// pools, images and disks is the daemon's.
package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/term"

	"github.com/tarn-storage/tarn/client"
	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/exit"
)

// Streams are the standard streams of one run.
type Streams struct {
	In, Out, Err *os.File
}

// app is one run of the command line.
type app struct {
	Streams
	args   []string // nil for the whole tree
	socket string
	remote client.Remote
	output string // table, json
	quiet  bool

	conn *client.Client
}

// Run runs one command line, without the program's name, and returns the exit
// status. When ctx ends it stops waiting; what the daemon does goes on.
func Run(ctx context.Context, args []string, s Streams) int {
	a := &app{Streams: s, output: "table", args: append([]string{}, args...)}
	root := a.root()
	root.SetArgs(args)
	root.SetIn(s.In)
	root.SetOut(s.Out)
	root.SetErr(s.Err)
	err := root.ExecuteContext(ctx)
	if a.conn != nil {
		a.conn.Close()
	}
	if err == nil {
		return 0
	}
	var e *errs.Error
	var code exit.Code
	if !errors.As(err, &e) && !errors.As(err, &code) { // only cobra's own errors have no kind: the grammar's
		err = grammar(root, args, err)
	}
	exit.Print(s.Err, "tarn", err, wantsJSON(args))
	return exit.Status(err)
}

// negative reports what the flag parser takes for a bundle of short flags.
func negative(arg string) bool {
	return len(arg) > 1 && arg[0] == '-' && arg[1] >= '0' && arg[1] <= '9'
}

// grammar makes an error of the command line of what cobra says.
func grammar(root *cobra.Command, args []string, err error) error {
	if i := slices.IndexFunc(args, negative); i >= 0 {
		return usage("%s: a size cannot be negative", args[i]).WithHint("give a size above 0, for example 20G")
	}
	return usage("%s", err).WithHint("see %s --help", path(root, args))
}

// path returns the command that args name, as far as they do.
func path(root *cobra.Command, args []string) string {
	cmd, _, err := root.Find(args)
	if err != nil {
		return root.Name()
	}
	return cmd.CommandPath()
}

// wantsJSON reports whether args ask for JSON, also when they cannot be parsed.
func wantsJSON(args []string) bool {
	for i, s := range args {
		switch {
		case s == "--":
			return false
		case s == "-ojson", s == "-o=json", s == "--output=json":
			return true
		case (s == "-o" || s == "--output") && i+1 < len(args) && args[i+1] == "json":
			return true
		}
	}
	return false
}

// usage is an error of the command line itself.
func usage(format string, args ...any) *errs.Error {
	return errs.New(errs.Invalid, "cli", "", format, args...)
}

// kinded gives an error without one a kind, so that only the grammar's errors
// lack it.
func kinded(err error) error {
	var e *errs.Error
	var code exit.Code
	if err == nil || errors.As(err, &e) || errors.As(err, &code) {
		return err
	}
	return errs.Wrap(err, "cli", "")
}

// interrupted words the error of a call that ended because ctx did, unless the
// command had a better word for it.
func interrupted(ctx context.Context, err error) error {
	var e *errs.Error
	if ctx.Err() == nil || !errors.As(err, &e) || e.Kind != errs.Cancelled || e.Op != "client.request" {
		return err
	}
	return errs.New(errs.Cancelled, "cli", "", "stopped before the daemon had answered")
}

// client returns the client of the run.
func (a *app) client() (*client.Client, error) {
	if a.conn != nil {
		return a.conn, nil
	}
	if a.remote.URL == "" {
		a.conn = client.New(client.Search{Socket: a.socket, Env: os.Getenv("TARN_SOCKET"), RuntimeDir: os.Getenv("XDG_RUNTIME_DIR")})
		return a.conn, nil
	}
	c, err := client.NewRemote(a.remote)
	a.conn = c
	return c, err
}

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "tarn",
		Short: "Keep the disks of virtual machines in storage pools",
		Long: "tarn keeps the disks of virtual machines in storage pools: it imports images, makes the disks of\n" +
			"instances from them, grows, attaches, exports and deletes those disks. This command talks to tarnd.\n\n" +
			"Objects are named by name or id, disks also by serial or INSTANCE/root, INSTANCE/data0. Sizes are\n" +
			"bytes or 512M, 20G, 1T (powers of 1024). Exit status: 0 done, 1 internal, 2 usage, 3 not found,\n" +
			"4 conflict or exists, 5 refused as unsafe, 6 no space, 7 busy, 8 unavailable, 9 cancelled, 10 corrupt.",
		Example:           "  tarn pool create fast --driver dir --path /srv/tarn/fast\n  tarn image import debian12 debian12.qcow2 --format qcow2\n  tarn instance create web1 --root debian12:20G --data 100G",
		SilenceErrors:     true,
		SilenceUsage:      true,
		CompletionOptions: cobra.CompletionOptions{DisableDefaultCmd: true},
		Args:              noVerb,
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error { return noEmptyFlag(cmd.Flags()) },
		RunE:              func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	f := root.PersistentFlags()
	f.StringVar(&a.socket, "socket", "", "the daemon's unix socket (else TARN_SOCKET, then the usual places)")
	f.StringVar(&a.remote.URL, "url", os.Getenv("TARN_URL"), "a daemon on TCP, https://HOST:PORT (TARN_URL)")
	f.StringVar(&a.remote.Cert, "cert", os.Getenv("TARN_CERT"), "client certificate for --url (TARN_CERT)")
	f.StringVar(&a.remote.Key, "key", os.Getenv("TARN_KEY"), "key of the client certificate (TARN_KEY)")
	f.StringVar(&a.remote.CA, "ca", os.Getenv("TARN_CA"), "certificates that may sign the daemon's (TARN_CA)")
	f.VarP(newChoice(&a.output, "table", "json"), "output", "o", "output: table or json")
	f.BoolVarP(&a.quiet, "quiet", "q", false, "print ids only")
	root.AddCommand(a.poolCommand(), a.imageCommand(), a.cacheCommand(), a.instanceCommand(), a.diskCommand(),
		a.volumeCommand(), a.operationCommand(), a.doctorCommand(), a.eventsCommand(), a.versionCommand(),
		completionCommand())
	_ = root.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{"table", "json"}, cobra.ShellCompDirectiveNoFileComp))
	return root
}

// verb is what a command of the tree is made from.
type verb struct {
	use      string // "create NAME"
	aliases  []string
	short    string
	long     string // more than short says
	example  string
	args     []string // what each positional argument is called
	complete []func(context.Context, *client.Client) ([]string, error)
	run      func(ctx context.Context, c *client.Client, args []string) error
}

// command makes a command that talks to the daemon.
func (a *app) command(v verb) *cobra.Command {
	long := v.short + "."
	if v.long != "" {
		long += "\n\n" + v.long
	}
	return &cobra.Command{
		Use: v.use, Aliases: v.aliases, Short: v.short, Long: long, Example: indent(v.example),
		Args:              exactly(v.args),
		ValidArgsFunction: a.completion(v.complete),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			return kinded(interrupted(cmd.Context(), v.run(cmd.Context(), c, args)))
		},
	}
}

// noun makes a command that only groups others. Those are made only if the
// command line has the noun's word somewhere, because the whole tree costs more
// than most calls.
func (a *app) noun(use, short, long string, verbs ...func() *cobra.Command) *cobra.Command {
	cmd := &cobra.Command{
		Use: use, Short: short, Long: short + ".\n\n" + long,
		Args: noVerb,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return usage("%s needs a verb", cmd.CommandPath()).WithHint("see %s --help", cmd.CommandPath())
		},
	}
	if a.args != nil && !slices.Contains(a.args, use) {
		return cmd
	}
	examples := make([]string, 0, len(verbs))
	for _, verb := range verbs {
		v := verb()
		if first, _, _ := strings.Cut(v.Example, "\n"); first != "" {
			examples = append(examples, first)
		}
		cmd.AddCommand(v)
	}
	cmd.Example = strings.Join(examples, "\n")
	return cmd
}

// noVerb refuses arguments of a command that only groups others.
func noVerb(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	e := usage("%s has no command %q", cmd.CommandPath(), args[0])
	cmd.SuggestionsMinimumDistance = 2 // typing errors
	if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
		return e.WithHint("did you mean %s?", strings.Join(near, " or "))
	}
	return e.WithHint("see %s --help", cmd.CommandPath())
}

// exactly asks for the named positional arguments, none of them empty; those in
// brackets, at the end, may be left out.
func exactly(names []string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		hint := "usage: " + cmd.UseLine()
		needed := slices.DeleteFunc(slices.Clone(names), func(n string) bool { return strings.HasPrefix(n, "[") })
		if len(args) < len(needed) {
			return usage("%s needs %s", cmd.CommandPath(), strings.Join(needed[len(args):], " and ")).WithHint("%s", hint)
		}
		if len(args) > len(names) {
			return usage("%s does not take the argument %q", cmd.CommandPath(), args[len(names)]).WithHint("%s", hint)
		}
		if i := slices.Index(args, ""); i >= 0 {
			return usage("%s is empty", names[i]).WithHint("%s", hint)
		}
		return nil
	}
}

// noEmptyFlag refuses a flag that is given without a value: a script's variable
// that is not set must not turn off what the flag asks for, as the check of a
// digest.
func noEmptyFlag(flags *pflag.FlagSet) (err error) {
	flags.Visit(func(f *pflag.Flag) {
		empty := f.Value.String() == ""
		if list, ok := f.Value.(pflag.SliceValue); ok {
			empty = slices.Contains(list.GetSlice(), "")
		}
		if empty && err == nil {
			err = usage("--%s is empty", f.Name).WithHint("leave it out, or see whether a variable in it is not set")
		}
	})
	return err
}

func indent(s string) string { return "  " + strings.ReplaceAll(s, "\n", "\n  ") }

// terminal reports whether f is one.
func terminal(f *os.File) bool { return term.IsTerminal(int(f.Fd())) }

// choice is a flag whose value is one of a few words.
type choice struct {
	value *string
	words []string
}

func newChoice(value *string, words ...string) *choice { return &choice{value, words} }

// String returns the present value.
func (c *choice) String() string {
	if c.value == nil {
		return ""
	}
	return *c.value
}

// Set accepts one of the words.
func (c *choice) Set(s string) error {
	if !slices.Contains(c.words, s) {
		return fmt.Errorf("must be one of %s", strings.Join(c.words, ", "))
	}
	*c.value = s
	return nil
}

// Type is what help calls the value.
func (c *choice) Type() string { return strings.Join(c.words, "|") }
