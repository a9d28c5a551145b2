package cli

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/tarn-storage/tarn/api"
	"github.com/tarn-storage/tarn/client"
)

func (a *app) operationCommand() *cobra.Command {
	return a.noun("operation", "Look at operations, wait for them and cancel them",
		"An operation is one journalled piece of work. It outlives the command that started it and the daemon.",
		a.operationList, a.operationShow, a.operationWait, a.operationCancel)
}

func operationFields(o api.Operation) []field {
	failure, progress, steps := "", "", ""
	if o.Error != nil {
		failure = o.Error.Message
	}
	if o.Progress.Total > 0 && !o.Final() {
		progress = strings.TrimSpace(portion(o.Progress) + " " + pace(o.Progress))
	}
	for i, s := range o.Steps {
		if i > 0 {
			steps += ", "
		}
		steps += s.Kind + " " + s.State
	}
	return []field{
		{"id", o.ID}, {"kind", o.Kind}, {"state", o.State}, {"subject", subject(o.Subject)}, {"request id", o.Key}, {"progress", progress},
		{"steps", steps}, {"error", failure}, {"created", when(o.CreatedAt)}, {"updated", when(o.UpdatedAt)},
	}
}

func subject(s api.Subject) string {
	name := s.Name
	if name == "" {
		name = s.ID
	}
	return s.Type + " " + name
}

func (a *app) operationList() *cobra.Command {
	var state string
	cmd := a.command(verb{
		use: "list", aliases: []string{"ls"}, short: "List operations", example: "tarn operation list --state running",
		run: func(ctx context.Context, c *client.Client, _ []string) error {
			l, err := c.Operations(ctx, state, everything)
			if err != nil {
				return err
			}
			return printList(a, l, func(o api.Operation) string { return o.ID }, "ID KIND STATE SUBJECT PROGRESS CREATED", func(o api.Operation) []string {
				progress := ""
				if o.Progress.Total > 0 && !o.Final() {
					progress = fmt.Sprintf("%d%%", int64(float64(o.Progress.Done)/float64(o.Progress.Total)*100))
				}
				return []string{o.ID, o.Kind, o.State, subject(o.Subject), progress, when(o.CreatedAt)}
			})
		},
	})
	cmd.Flags().Var(newChoice(&state, "queued", "running", "undoing", "done", "failed", "cancelled", "needs_operator"), "state", "only operations in this state")
	return cmd
}

func (a *app) operationShow() *cobra.Command {
	return a.command(verb{
		use: "show OPERATION", aliases: []string{"info"}, short: "Show an operation", args: []string{"OPERATION"}, complete: []names{operationNames},
		example: "tarn operation show 0197f1c2-8a51-7c3e-9f02-3a5b7d8e9f01",
		run: func(ctx context.Context, c *client.Client, args []string) error {
			o, err := c.Operation(ctx, args[0])
			if err != nil {
				return err
			}
			return a.printObject(o, o.ID, operationFields(o))
		},
	})
}

func (a *app) operationWait() *cobra.Command {
	return a.command(verb{
		use: "wait OPERATION", short: "Wait for the end of an operation", args: []string{"OPERATION"}, complete: []names{operationNames},
		long:    "The exit status is what the command that started it would have had.",
		example: "tarn operation wait $(tarn image import debian12 debian12.qcow2 --format qcow2 --no-wait -q)",
		run: func(ctx context.Context, c *client.Client, args []string) error {
			o, err := c.Operation(ctx, args[0])
			if err != nil {
				return err
			}
			if o, err = a.wait(ctx, c, o, false); err != nil {
				return err
			}
			if err := ended(o); err != nil {
				return err
			}
			return a.printObject(o, o.ID, operationFields(o))
		},
	})
}

func (a *app) operationCancel() *cobra.Command {
	return a.command(verb{
		use: "cancel OPERATION", short: "Ask an operation to stop and undo itself", args: []string{"OPERATION"}, complete: []names{operationNames},
		example: "tarn operation cancel 0197f1c2-8a51-7c3e-9f02-3a5b7d8e9f01",
		run: func(ctx context.Context, c *client.Client, args []string) error {
			o, err := c.OperationCancel(ctx, args[0])
			if err != nil {
				return err
			}
			return a.printObject(o, o.ID, operationFields(o))
		},
	})
}
