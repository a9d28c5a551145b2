package store

import (
	"context"
	"database/sql/driver"
	"fmt"
	"strings"

	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/disk"
)

// Table is one kind of record within a transaction. Its methods must not be
// used after the function that was given the transaction has returned.
type Table[K ~string, R any] struct {
	tx   *Tx
	spec *table[R]
}

// Where is one condition: the column equals the value, or is NULL for nil.
type Where struct {
	Column string
	Value  any
}

// Eq returns the condition that column equals value.
func Eq(column string, value any) Where { return Where{column, value} }

// Query selects rows: those that meet every condition, in the order of their
// ids, beginning behind the id After. Limit 0 means all.
type Query struct {
	Where []Where
	After string
	Limit int
}

// table describes one table to the generic code.
type table[R any] struct {
	name, noun string
	columns    func(*R) []column
	key        string
	byName     map[string]column // of a record that nobody uses
	referrers  []reference
	journalled bool // written through the journal's methods only

	selectSQL, insertSQL, updateSQL, deleteSQL string
}

// reference is a column of another table that refers to this one.
type reference struct{ noun, table, column string }

func newTable[R any](name, noun string, columns func(*R) []column, referrers ...reference) *table[R] {
	t := &table[R]{name: name, noun: noun, columns: columns, byName: map[string]column{}, referrers: referrers}
	var names, places []string
	for i, c := range columns(new(R)) {
		t.byName[c.name] = c
		names = append(names, c.name)
		places = append(places, fmt.Sprintf("$%d", i+1))
	}
	t.key = names[0]
	t.selectSQL = "SELECT " + strings.Join(names, ", ") + " FROM " + name
	t.insertSQL = "INSERT INTO " + name + " (" + strings.Join(names, ", ") + ") VALUES (" + strings.Join(places, ", ") + ")"
	t.updateSQL = t.update(changing(columns(new(R))))
	t.deleteSQL = "DELETE FROM " + name + " WHERE " + t.key + " = $1"
	return t
}

// journal marks a table as written by the journal's methods only.
func (t *table[R]) journal() *table[R] {
	t.journalled = true
	return t
}

// Get returns the record with the given id, or errs.NotFound.
func (t Table[K, R]) Get(ctx context.Context, id K) (R, error) {
	rows, err := t.read(ctx, t.spec.selectSQL+" WHERE "+t.spec.key+" = $1", string(id))
	if err == nil && len(rows) == 0 {
		err = t.missing(string(id))
	}
	if err != nil {
		return *new(R), err
	}
	return rows[0], nil
}

// One returns the record that meets every condition; none is errs.NotFound and
// several are errs.Conflict.
func (t Table[K, R]) One(ctx context.Context, where ...Where) (R, error) {
	cond, args, err := t.conditions(where)
	if err != nil {
		return *new(R), err
	}
	// Unordered: an engine that is asked for two rows in the order of ids may
	// rather look through all ids than use an index on the conditions.
	rows, err := t.read(ctx, t.spec.selectSQL+clause(cond)+" LIMIT 2", args...)
	switch {
	case err != nil:
	case len(rows) == 1:
		return rows[0], nil
	case len(rows) == 0:
		err = t.missing(describe(where))
	default:
		err = errs.New(errs.Conflict, t.spec.noun+".find", describe(where), "more than one %s matches", t.spec.noun)
	}
	return *new(R), err
}

// List returns the rows q selects. When Limit cut the list, next is the After
// that continues it; else next is empty.
func (t Table[K, R]) List(ctx context.Context, q Query) (items []R, next string, err error) {
	cond, args, err := t.conditions(q.Where)
	if err != nil {
		return nil, "", err
	}
	if q.After != "" {
		args = append(args, q.After)
		cond = append(cond, fmt.Sprintf("%s > $%d", t.spec.key, len(args)))
	}
	text := t.spec.selectSQL + clause(cond) + " ORDER BY " + t.spec.key
	if q.Limit > 0 {
		args = append(args, int64(q.Limit)+1)
		text += fmt.Sprintf(" LIMIT $%d", len(args))
	}
	items, err = t.read(ctx, text, args...)
	if err == nil && q.Limit > 0 && len(items) > q.Limit {
		items = items[:q.Limit]
		key, err := t.spec.columns(&items[q.Limit-1])[0].value()
		return items, key.(string), err
	}
	return items, "", err
}

// Count returns how many records meet every condition.
func (t Table[K, R]) Count(ctx context.Context, where ...Where) (int, error) {
	cond, args, err := t.conditions(where)
	if err != nil {
		return 0, err
	}
	var n int
	_, err = t.tx.row(ctx, "SELECT COUNT(*) FROM "+t.spec.name+clause(cond), args, &n)
	return n, err
}

// Insert adds r. A value that must be unique and is not is errs.Exists; a
// reference to a record that does not exist is errs.Conflict.
func (t Table[K, R]) Insert(ctx context.Context, r R) error {
	if err := t.writable("insert"); err != nil {
		return err
	}
	return t.insert(ctx, &r)
}

// Update replaces the record with r's id, or returns errs.NotFound. Constraints
// fail as in Insert.
func (t Table[K, R]) Update(ctx context.Context, r R) error {
	if err := t.writable("update"); err != nil {
		return err
	}
	text, columns := t.spec.updateSQL, changing(t.spec.columns(&r))
	key, err := columns[0].value()
	if err != nil {
		return err
	}
	var before volumeSums
	if t.spec.name == volumes.name {
		old, err := t.Get(ctx, K(key.(string)))
		if err != nil {
			return err
		}
		before = sumsOf(&old)
		if columns, err = differing(columns, changing(t.spec.columns(&old))); err != nil || len(columns) == 1 {
			return err
		}
		text = t.spec.update(columns)
	}
	n, err := t.write(ctx, "update", text, &r, columns)
	if err == nil && n == 0 {
		err = t.missing(key.(string))
	}
	if err != nil {
		return err
	}
	t.tx.account(before, sumsOf(&r))
	return nil
}

// update is the statement that sets all columns but the first, which selects.
func (t *table[R]) update(columns []column) string {
	var sets []string
	for i, c := range columns[1:] {
		sets = append(sets, fmt.Sprintf("%s = $%d", c.name, i+2))
	}
	return "UPDATE " + t.name + " SET " + strings.Join(sets, ", ") + " WHERE " + columns[0].name + " = $1"
}

// differing returns the key and those columns whose values are not what they
// were: an index is written whenever a statement sets one of its columns.
func differing(columns, were []column) ([]column, error) {
	differ := columns[:1]
	for i, c := range columns[1:] {
		old, err := were[i+1].value()
		if err != nil {
			return nil, err
		}
		now, err := c.value()
		if err != nil {
			return nil, err
		}
		if old != now {
			differ = append(differ, c)
		}
	}
	return differ, nil
}

// Delete removes the record with the given id. A missing one is not an error; a
// record that another one refers to is errs.Busy and stays.
func (t Table[K, R]) Delete(ctx context.Context, id K) error {
	if err := t.writable("delete"); err != nil {
		return err
	}
	before, err := t.volumeSums(ctx, string(id))
	if err != nil {
		return err
	}
	_, err = t.tx.exec(ctx, t.spec.deleteSQL, string(id))
	if t.tx.engine.class(err) == Foreign {
		return t.referred(ctx, string(id), err)
	}
	if err != nil {
		return t.tx.failed(t.spec.noun+".delete", string(id), err)
	}
	if t.spec.name == pools.name {
		t.tx.forget(disk.PoolID(id))
	}
	t.tx.account(before, volumeSums{})
	return nil
}

func (t Table[K, R]) insert(ctx context.Context, r *R) error {
	if _, err := t.write(ctx, "insert", t.spec.insertSQL, r, t.spec.columns(r)); err != nil {
		return err
	}
	t.tx.account(volumeSums{}, sumsOf(r))
	return nil
}

// write runs a statement that writes r and whose parameters are these of its
// columns, in their order.
func (t Table[K, R]) write(ctx context.Context, verb, text string, r *R, columns []column) (int64, error) {
	args, err := t.values(verb, columns)
	if err != nil {
		return 0, err
	}
	n, err := t.tx.exec(ctx, text, args...)
	if err == nil {
		return n, nil
	}
	columns = t.spec.columns(r)
	args, _ = t.values(verb, columns)
	op, subject := t.spec.noun+"."+verb, subjectOf(columns, args)
	switch p := t.tx.engine.classify(err); p.Class {
	case Unique:
		return 0, refused(err, errs.Exists, op, subject, "there is already %s %s with %s", article(t.spec.noun), t.spec.noun, clash(p.Columns, columns, args))
	case Foreign:
		return 0, refused(err, errs.Conflict, op, subject, "the %s refers to a record that does not exist", t.spec.noun)
	}
	return 0, t.tx.failed(op, subject, err)
}

// values returns what the columns hold.
func (t Table[K, R]) values(verb string, columns []column) ([]any, error) {
	args := make([]any, len(columns))
	for i, c := range columns {
		v, err := c.value()
		if err != nil {
			return nil, errs.New(errs.Internal, t.spec.noun+"."+verb, c.name, "the field cannot be stored: %w", err)
		}
		args[i] = v
	}
	return args, nil
}

// article returns the indefinite article of a record's noun.
func article(noun string) string {
	if strings.ContainsRune("aeiou", rune(noun[0])) {
		return "an"
	}
	return "a"
}

// read returns every row of a query that selects all columns.
func (t Table[K, R]) read(ctx context.Context, text string, args ...any) ([]R, error) {
	var items []R
	var r R
	columns := t.spec.columns(&r)
	err := t.tx.query(ctx, text, args, func(row []driver.Value) error {
		r = *new(R)
		for i := range columns {
			if err := columns[i].Scan(row[i]); err != nil {
				return fmt.Errorf("column %s: %w", columns[i].name, err)
			}
		}
		items = append(items, r)
		return nil
	})
	if err != nil {
		return nil, t.tx.failed(t.spec.noun+".read", "", err)
	}
	return items, nil
}

// conditions turns where into SQL conditions and their arguments.
func (t Table[K, R]) conditions(where []Where) (cond []string, args []any, err error) {
	for _, w := range where {
		column, known := t.spec.byName[w.Column]
		if !known {
			return nil, nil, errs.New(errs.Internal, t.spec.noun+".find", w.Column, "the table %s has no such column", t.spec.name)
		}
		v, err := plain(w.Value)
		if err != nil {
			return nil, nil, err
		}
		if v == nil || column.optional && v == "" {
			cond = append(cond, w.Column+" IS NULL")
			continue
		}
		if column.word && isWord(v) {
			cond = append(cond, fmt.Sprintf("%s = '%s'", w.Column, v))
			continue
		}
		args = append(args, v)
		cond = append(cond, fmt.Sprintf("%s = $%d", w.Column, len(args)))
	}
	return cond, args, nil
}

func clause(cond []string) string {
	if len(cond) == 0 {
		return ""
	}
	return " WHERE " + strings.Join(cond, " AND ")
}

func describe(where []Where) string {
	var parts []string
	for _, w := range where {
		parts = append(parts, fmt.Sprintf("%s %v", w.Column, w.Value))
	}
	return strings.Join(parts, ", ")
}

func (t Table[K, R]) missing(subject string) error {
	return errs.New(errs.NotFound, t.spec.noun+".find", subject, "there is no such %s", t.spec.noun)
}

func (t Table[K, R]) writable(verb string) error {
	if t.spec.journalled {
		return errs.New(errs.Internal, t.spec.noun+"."+verb, "", "operations are written by the journal only")
	}
	return nil
}

// referred explains why id cannot be deleted by naming one record that refers
// to it.
func (t Table[K, R]) referred(ctx context.Context, id string, cause error) error {
	op := t.spec.noun + ".delete"
	for _, ref := range t.spec.referrers {
		var n int64
		text := "SELECT COUNT(*) FROM " + ref.table + " WHERE " + ref.column + " = $1"
		if _, err := t.tx.row(ctx, text, []any{id}, &n); err != nil {
			return err
		}
		if n > 0 {
			return refused(cause, errs.Busy, op, id, "the %s is in use: %s records that refer to it: %d", t.spec.noun, ref.noun, n)
		}
	}
	return refused(cause, errs.Busy, op, id, "the %s is in use by another record", t.spec.noun)
}

// refused is an error that keeps its cause but not its cause's words, which are
// the database's own.
func refused(cause error, kind errs.Kind, op, subject, format string, args ...any) error {
	e := errs.New(kind, op, subject, format, args...)
	e.Err = cause
	return e
}

// subjectOf names a record for people: by its name where it has one.
func subjectOf(columns []column, args []any) string {
	for i, c := range columns {
		if c.name == "name" && args[i] != "" {
			return args[i].(string)
		}
	}
	return args[0].(string)
}

// clash renders the values that another record already has. Ids of containers
// are left out where a word of the user's own is part of the key.
func clash(names []string, columns []column, args []any) string {
	var own, all []string
	for _, name := range names {
		for i, c := range columns {
			if c.name != name {
				continue
			}
			part := fmt.Sprintf("%s %q", name, fmt.Sprint(args[i]))
			all = append(all, part)
			if !strings.HasSuffix(name, "_id") {
				own = append(own, part)
			}
		}
	}
	if len(own) > 0 {
		all = own
	}
	if len(all) == 0 {
		return "these values"
	}
	return strings.Join(all, " and ")
}

// sumsOf returns what a record adds to its pool; only volumes add anything.
func sumsOf(r any) volumeSums {
	v, ok := r.(*disk.Volume)
	if !ok {
		return volumeSums{}
	}
	return volumeSums{pool: v.PoolID, Sums: Sums{Committed: v.Committed, Writing: v.Writing, Provisioned: v.VirtualSize, Allocated: v.Allocated}}
}
