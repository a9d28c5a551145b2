package store

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"slices"

	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/journal"
)

// InsertOperation adds a row and takes its Resources; errs.Busy names the
// operation that holds one. A row with the same Key and Kind is returned
// instead, with found true; when its Request differs it is errs.Conflict.
func (s *Store) InsertOperation(ctx context.Context, tx *Tx, op journal.Operation) (existing journal.Operation, found bool, err error) {
	if op.Key != "" {
		same, _, err := tx.Operations.List(ctx, Query{Where: []Where{Eq("kind", op.Kind), Eq("key", op.Key)}})
		if err != nil {
			return journal.Operation{}, false, err
		}
		if len(same) > 0 {
			if !sameJSON(same[0].Request, op.Request) {
				return journal.Operation{}, false, errs.New(errs.Conflict, op.Kind, op.Subject.Name,
					"the request id %q was used for a different request, operation %s", op.Key, same[0].ID).
					WithHint("use a new request id for a new request")
			}
			return same[0], true, nil
		}
	}
	held := slices.Compact(slices.Sorted(slices.Values(op.Resources)))
	if op.State.Final() {
		held = nil
	}
	for _, resource := range held {
		if err := free(ctx, tx, op, resource); err != nil {
			return journal.Operation{}, false, err
		}
	}
	if err := tx.Operations.insert(ctx, &op); err != nil {
		return journal.Operation{}, false, err
	}
	for _, resource := range held {
		_, err := tx.exec(ctx, "INSERT INTO operation_resources (resource, operation_id) VALUES ($1, $2)", resource, string(op.ID))
		if err != nil {
			return journal.Operation{}, false, tx.failed("operation.insert", resource, err)
		}
	}
	return op, false, nil
}

// free returns errs.Busy when an operation holds the resource.
func free(ctx context.Context, tx *Tx, op journal.Operation, resource string) error {
	var id, kind, name string
	held, err := tx.row(ctx, `SELECT o.id, o.kind, o.subject_name FROM operation_resources r
		JOIN operations o ON o.id = r.operation_id WHERE r.resource = $1`, []any{resource}, &id, &kind, &name)
	if err != nil || !held {
		return err
	}
	return errs.New(errs.Busy, op.Kind, op.Subject.Name, "operation %s (%s %s) is at work on %s", id, kind, name, resource).
		WithHint("wait for it: tarn operation wait %s", id)
}

// UpdateOperation writes op where id and fence match, else errs.Conflict: what an
// operation comes to, not what it was submitted with (Kind, Subject, Key, Request,
// Resources, Owner, CreatedAt). In a final state it releases the Resources.
func (s *Store) UpdateOperation(ctx context.Context, tx *Tx, op journal.Operation) error {
	n, err := tx.Operations.write(ctx, "update", updateFenced, &op, changing(operations.columns(&op)))
	if err != nil {
		return err
	}
	if n == 0 {
		return errs.New(errs.Conflict, "operation.update", string(op.ID),
			"the operation does not belong to this run of the daemon (fence %d)", op.Fence)
	}
	if !op.State.Final() {
		return nil
	}
	for _, resource := range op.Resources {
		_, err := tx.exec(ctx, "DELETE FROM operation_resources WHERE resource = $1 AND operation_id = $2", resource, string(op.ID))
		if err != nil {
			return tx.failed("operation.update", string(op.ID), err)
		}
	}
	return nil
}

// updateFenced updates an operation where its fence is that of the record too.
var updateFenced = fmt.Sprintf("%s AND fence = $%d", operations.updateSQL,
	1+slices.IndexFunc(changing(operations.columns(new(journal.Operation))), func(c column) bool { return c.name == "fence" }))

// Operation returns one row, or errs.NotFound.
func (s *Store) Operation(ctx context.Context, tx *Tx, id journal.ID) (journal.Operation, error) {
	return tx.Operations.Get(ctx, id)
}

// TakeUnfinished moves the rows of owner that are in no final state to fence
// and returns them, oldest first.
func (s *Store) TakeUnfinished(ctx context.Context, tx *Tx, owner string, fence int64) ([]journal.Operation, error) {
	const unfinished = " WHERE owner = $1 AND (state = 'queued' OR state = 'running' OR state = 'undoing')"
	_, err := tx.exec(ctx, "UPDATE operations SET fence = $2"+unfinished, owner, fence)
	if err != nil {
		return nil, tx.failed("operation.take", owner, err)
	}
	return tx.Operations.read(ctx, operations.selectSQL+unfinished+" ORDER BY created_at, id", owner)
}

// sameJSON reports whether two documents are equal but for insignificant space.
func sameJSON(a, b json.RawMessage) bool {
	var x, y bytes.Buffer
	if json.Compact(&x, a) != nil || json.Compact(&y, b) != nil {
		return bytes.Equal(a, b)
	}
	return bytes.Equal(x.Bytes(), y.Bytes())
}
