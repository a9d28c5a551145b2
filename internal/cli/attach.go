package cli

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/tarn-storage/tarn/api"
)

const (
	attachHelp = "The lease is the right to write: one host holds it. A repeat on the same host prints the same. With\n" +
		"--as libvirt one <disk> element per disk is printed; with --as qemu one line of arguments, quoted for a\n" +
		"shell where needed, or NUL-separated with -0. --dry-run prints the same and takes no lease."
	detachHelp = "A lease whose disk QEMU still has open is kept, and the exit status is 7. --force drops it all the same;\n" +
		"every other command still refuses while the locks are held."
)

// attaching are the flags of the attach commands.
type attaching struct {
	api.Attach
	zero   bool
	dryRun bool
}

func (t *attaching) add(cmd *cobra.Command) *cobra.Command {
	asFlag(cmd, &t.As, true)
	cmd.Flags().BoolVarP(&t.zero, "null", "0", false, "separate QEMU's arguments by NUL, unquoted")
	cmd.Flags().BoolVar(&t.dryRun, "dry-run", false, "take no lease")
	return cmd
}

func asFlag(cmd *cobra.Command, as *string, required bool) {
	cmd.Flags().Var(newChoice(as, "libvirt", "qemu"), "as", "whose form to print")
	if required {
		_ = cmd.MarkFlagRequired("as")
	}
	_ = cmd.RegisterFlagCompletionFunc("as", cobra.FixedCompletions([]string{"libvirt", "qemu"}, cobra.ShellCompDirectiveNoFileComp))
}

// detaching are the flags of the detach commands.
type detaching struct {
	api.Detach
	yes    bool
	dryRun bool
}

func (d *detaching) add(cmd *cobra.Command) *cobra.Command {
	cmd.Flags().BoolVar(&d.Force, "force", false, "drop the lease even while QEMU's locks are held")
	cmd.Flags().BoolVar(&d.dryRun, "dry-run", false, "only say what would be given up")
	yesFlag(cmd, &d.yes)
	return cmd
}

// detach gives leases up. Only --force can lose data, so only it asks.
func (a *app) detach(d detaching, typ, ref string, call func() error) error {
	if d.dryRun {
		return a.printPlan(&api.Plan{Kind: typ + ".detach", Subject: api.Subject{Type: typ, Name: ref}, Steps: []api.Step{{Kind: "lease.release"}}})
	}
	if d.Force {
		if err := a.confirm(d.yes, "Drop the leases of %s %s even if a guest is writing?", typ, ref); err != nil {
			return err
		}
	}
	if err := call(); err != nil {
		return err
	}
	if a.output == "json" {
		return printJSON(a.Out, struct{}{})
	}
	return a.say("%s %s detached", typ, ref)
}

// printAttachment prints what a hypervisor needs.
func (a *app) printAttachment(at api.Attachment, as string, zero bool, err error) error {
	if err != nil {
		return err
	}
	text := ""
	switch {
	case a.output == "json":
		return printJSON(a.Out, at)
	case as == "libvirt":
		for _, element := range at.Libvirt {
			text += strings.TrimRight(element, "\n") + "\n"
		}
	case zero:
		for _, arg := range at.QEMU {
			text += arg + "\x00"
		}
	default:
		quoted := make([]string, 0, len(at.QEMU))
		for _, arg := range at.QEMU {
			quoted = append(quoted, shellQuote(arg))
		}
		text = strings.Join(quoted, " ") + "\n"
	}
	_, err = fmt.Fprint(a.Out, text)
	return wrote(err)
}

// shellQuote quotes a word for a POSIX shell if it needs it.
func shellQuote(s string) string {
	plain := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("@%+=:,./-_", r)
	}
	if s != "" && strings.IndexFunc(s, func(r rune) bool { return !plain(r) }) < 0 {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
