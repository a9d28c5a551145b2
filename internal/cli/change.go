package cli

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/tarn-storage/tarn/api"
	"github.com/tarn-storage/tarn/client"
	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/exit"
)

// changing are the flags of every command that changes something through an
// operation.
type changing struct {
	api.Options
	noWait bool
	yes    bool
}

func (f *changing) add(cmd *cobra.Command) *cobra.Command {
	cmd.Flags().BoolVar(&f.DryRun, "dry-run", false, "print the plan and change nothing")
	cmd.Flags().BoolVar(&f.noWait, "no-wait", false, "print the operation and do not wait for its end")
	cmd.Flags().StringVar(&f.RequestID, "request-id", "", "a repeat with the same `KEY` answers with the first call's operation")
	return cmd
}

// addDestroying adds the flags of a command that destroys something.
func (f *changing) addDestroying(cmd *cobra.Command) *cobra.Command {
	yesFlag(cmd, &f.yes)
	return f.add(cmd)
}

// ifAbsentFlag adds --if-absent; what says what has to be there.
func ifAbsentFlag(cmd *cobra.Command, value *bool, what string) {
	cmd.Flags().BoolVar(value, "if-absent", false, "succeed when "+what+" is there already; what is left out may be anything")
}

func yesFlag(cmd *cobra.Command, yes *bool) {
	cmd.Flags().BoolVarP(yes, "yes", "y", false, "do not ask")
}

// confirm asks before something is destroyed. Where nobody can answer, only
// --yes will do.
func (a *app) confirm(yes bool, format string, args ...any) error {
	if yes {
		return nil
	}
	if !terminal(a.In) || !terminal(a.Err) {
		return usage("this destroys something and nobody can be asked").WithHint("add --yes")
	}
	fmt.Fprintf(a.Err, "%s [y/N] ", exit.Printable(fmt.Sprintf(format, args...)))
	answer, _ := bufio.NewReader(a.In).ReadString('\n')
	switch strings.ToLower(strings.TrimSpace(answer)) {
	case "y", "yes":
		return nil
	}
	return errs.New(errs.Cancelled, "cli", "", "not confirmed; nothing was changed")
}

// destroy is confirm unless the call is a dry run.
func (a *app) destroy(f changing, format string, args ...any) error {
	return a.confirm(f.yes || f.DryRun, format, args...)
}

// finish prints the plan of a dry run, or waits for the operation and then
// calls show with it. With --no-wait it prints the operation as it is.
func (a *app) finish(ctx context.Context, c *client.Client, f changing, out api.Outcome, err error, show func(api.Operation) error) error {
	if err != nil {
		return err
	}
	if out.Operation == nil {
		return a.printPlan(out.Plan)
	}
	op := *out.Operation
	if f.noWait {
		return a.printObject(op, op.ID, operationFields(op))
	}
	if op, err = a.wait(ctx, c, op, f.Wait > 0); err != nil {
		return err
	}
	if err := ended(op); err != nil {
		return err
	}
	return show(op)
}

// patience is how long the call that starts an operation waits for its end:
// most end within it, and one call does.
const patience = time.Second

// change performs a call that starts an operation, and finishes it. When ctx
// ends, the call still has the time to say which operation it started.
func (a *app) change(ctx context.Context, c *client.Client, f changing,
	start func(context.Context, api.Options) (api.Outcome, error), show func(api.Operation) error) error {
	if !f.noWait && !f.DryRun {
		f.Wait = patience
	}
	calling, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	defer context.AfterFunc(ctx, func() { time.AfterFunc(2*patience, cancel) })()
	out, err := start(calling, f.Options)
	return a.finish(ctx, c, f, out, err, show)
}

// wait follows an operation to its end and shows its progress, at once if it was
// waited for already. When ctx ends first the operation goes on, and the error
// says how to get back to it.
func (a *app) wait(ctx context.Context, c *client.Client, op api.Operation, waited bool) (api.Operation, error) {
	p := a.progress()
	defer p.close()
	if waited && !op.Final() {
		p.show(op.Kind, op.Progress)
	}
	for !op.Final() {
		next, err := c.OperationWait(ctx, op.ID, time.Second)
		switch {
		case err == nil:
			op = next
			p.show(op.Kind, op.Progress) // what ends within a second shows nothing
		case ctx.Err() != nil:
			return op, goesOn(op.ID)
		case errors.Is(err, errs.Unavailable):
			return op, errs.New(errs.Unavailable, "cli", "", "the daemon went away; operation %s is taken up again when it is back", op.ID).
				WithHint("then: tarn operation wait %s", op.ID)
		default:
			return op, err
		}
	}
	return op, nil
}

// goesOn says how to get back to an operation that nobody waits for any more.
func goesOn(id string) error {
	return errs.New(errs.Cancelled, "cli", "", "stopped waiting; operation %s goes on", id).
		WithHint("wait again: tarn operation wait %s; cancel it: tarn operation cancel %s", id, id)
}

// ended returns the error of an operation that did not end well.
func ended(op api.Operation) error {
	switch {
	case op.State == "done":
		return nil
	case op.State == "needs_operator":
		reason := "it could not be undone"
		if op.Error != nil {
			reason = op.Error.Message
		}
		return errs.New(errs.Conflict, "cli", "", "operation %s needs an operator: %s", op.ID, reason).WithHint("see tarn doctor")
	case op.Error != nil:
		return op.Error.Err()
	}
	return errs.New(errs.Cancelled, "cli", "", "operation %s was cancelled and undone", op.ID)
}

// result is how a successful change of one object is shown: the object as it
// is now for programs, its id, or one line for people.
func result[T any](a *app, get func(id string) (T, error), line string) func(api.Operation) error {
	return func(op api.Operation) error {
		switch {
		case a.output == "json":
			v, err := get(op.Subject.ID)
			if err != nil {
				return err
			}
			return printJSON(a.Out, v)
		case a.quiet:
			_, err := fmt.Fprintln(a.Out, op.Subject.ID)
			return wrote(err)
		}
		return a.sayChanged(op, line)
	}
}

// gone is how a successful deletion is shown: the operation for programs, the
// id, or one line for people.
func (a *app) gone(line string) func(api.Operation) error {
	return func(op api.Operation) error {
		switch {
		case a.output == "json":
			return printJSON(a.Out, op)
		case a.quiet:
			_, err := fmt.Fprintln(a.Out, op.Subject.ID)
			return wrote(err)
		}
		return a.sayChanged(op, line)
	}
}

// sayChanged says what became of the operation's subject, or that it was so
// already.
func (a *app) sayChanged(op api.Operation, line string) error {
	var same api.Unchanged
	if json.Unmarshal(op.Result, &same) == nil && same.Unchanged {
		return a.say("%s %s is so already; nothing was done", op.Subject.Type, op.Subject.Name)
	}
	return a.say("%s %s %s", op.Subject.Type, op.Subject.Name, line)
}

// printPlan shows what a dry run would do.
func (a *app) printPlan(p *api.Plan) error {
	if p == nil {
		return errs.New(errs.Internal, "cli", "", "the daemon answered with neither a plan nor an operation")
	}
	if a.output == "json" {
		return printJSON(a.Out, p)
	}
	if err := a.say("%s %s: nothing was changed; this would happen:", p.Kind, p.Subject.Name); err != nil {
		return err
	}
	for _, s := range p.Steps {
		if err := a.say("  %s", s.Kind); err != nil {
			return err
		}
	}
	for _, n := range p.Notes {
		if err := a.say("  note: %s", n); err != nil {
			return err
		}
	}
	return nil
}
