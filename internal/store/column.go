package store

import (
	"database/sql"
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/disk"
)

// codec moves one field of a record to its column and back.
type codec interface {
	value() (any, error) // string, int64 or nil
	sql.Scanner
}

// column is one column of a table, bound to the field of one record.
type column struct {
	name string
	codec
	optional bool // the empty string is stored as NULL
	word     bool // conditions write the value into the statement
	constant bool // an update leaves it as it was inserted
}

// fixed marks a column that no update changes, so that no index over it is
// written then.
func (c column) fixed() column {
	c.constant = true
	return c
}

// changing returns the columns that an update writes, and the key.
func changing(columns []column) []column {
	return slices.DeleteFunc(columns, func(c column) bool { return c.constant })
}

// text binds a string field; the empty string is a value.
type textCodec[T ~string] struct{ p *T }

func text[T ~string](name string, p *T) column { return column{name: name, codec: textCodec[T]{p}} }

// word binds a string field with few values, all of them small letters. A
// condition on it is part of the statement's text: only then does an engine that
// plans a statement before it knows the parameters use an index over some of
// the values.
func word[T ~string](name string, p *T) column {
	return column{name: name, codec: textCodec[T]{p}, word: true}
}

// isWord reports whether v can stand in a statement as 'v'.
func isWord(v any) bool {
	s, ok := v.(string)
	return ok && strings.Trim(s, "abcdefghijklmnopqrstuvwxyz") == ""
}

func (c textCodec[T]) value() (any, error) { return string(*c.p), nil }

func (c textCodec[T]) Scan(src any) error {
	s, err := scanText(src)
	*c.p = T(s)
	return err
}

// optional binds a string field whose empty string means "none".
func optional[T ~string](name string, p *T) column {
	return column{name: name, codec: optionalCodec[T]{p}, optional: true}
}

type optionalCodec[T ~string] struct{ p *T }

func (c optionalCodec[T]) value() (any, error) {
	if *c.p == "" {
		return nil, nil
	}
	return string(*c.p), nil
}

func (c optionalCodec[T]) Scan(src any) error { return textCodec[T](c).Scan(src) }

func scanText(src any) (string, error) {
	switch s := src.(type) {
	case nil:
		return "", nil
	case string:
		return s, nil
	case []byte:
		return string(s), nil
	}
	return "", fmt.Errorf("the column holds %T where text belongs", src)
}

// number binds an integer field.
func number[T ~int | ~int64](name string, p *T) column {
	return column{name: name, codec: numberCodec[T]{p}}
}

type numberCodec[T ~int | ~int64] struct{ p *T }

func (c numberCodec[T]) value() (any, error) { return int64(*c.p), nil }

func (c numberCodec[T]) Scan(src any) error {
	n, ok := src.(int64)
	if !ok {
		return fmt.Errorf("the column holds %T where a number belongs", src)
	}
	*c.p = T(n)
	return nil
}

// flag binds a bool field as 0 or 1.
func flag(name string, p *bool) column { return column{name: name, codec: flagCodec{p}} }

type flagCodec struct{ p *bool }

func (c flagCodec) value() (any, error) {
	if *c.p {
		return int64(1), nil
	}
	return int64(0), nil
}

func (c flagCodec) Scan(src any) error {
	var n int64
	err := numberCodec[int64]{&n}.Scan(src)
	*c.p = n != 0
	return err
}

// stamp binds a time field; the column keeps microseconds.
func stamp(name string, p *time.Time) column { return column{name: name, codec: stampCodec{p}} }

type stampCodec struct{ p *time.Time }

func (c stampCodec) value() (any, error) { return c.p.UnixMicro(), nil }

func (c stampCodec) Scan(src any) error {
	var n int64
	err := numberCodec[int64]{&n}.Scan(src)
	*c.p = time.UnixMicro(n).UTC()
	return err
}

// document binds a field as JSON; what marshals to null is stored as NULL.
// A json.RawMessage comes back byte for byte.
func document[T any](name string, p *T) column { return column{name: name, codec: documentCodec[T]{p}} }

type documentCodec[T any] struct{ p *T }

func (c documentCodec[T]) value() (any, error) {
	if raw, ok := any(*c.p).(json.RawMessage); ok {
		if len(raw) == 0 {
			return nil, nil
		}
		if !json.Valid(raw) {
			return nil, fmt.Errorf("%.40q is not JSON", raw)
		}
		return string(raw), nil
	}
	b, err := json.Marshal(*c.p)
	if err != nil || string(b) == "null" {
		return nil, err
	}
	return string(b), nil
}

func (c documentCodec[T]) Scan(src any) error {
	s, err := scanText(src)
	if err != nil || src == nil {
		return err
	}
	if raw, ok := any(c.p).(*json.RawMessage); ok {
		*raw = json.RawMessage(s)
		return nil
	}
	return json.Unmarshal([]byte(s), c.p)
}

// backing binds one field of a volume's backing, which exists where the column
// is not NULL.
func backing[T ~string](name string, p **disk.Backing, field func(*disk.Backing) *T) column {
	return column{name: name, codec: backingCodec[T]{p, field}, optional: true}
}

type backingCodec[T ~string] struct {
	p     **disk.Backing
	field func(*disk.Backing) *T
}

func (c backingCodec[T]) value() (any, error) {
	if *c.p == nil {
		return nil, nil
	}
	return string(*c.field(*c.p)), nil
}

func (c backingCodec[T]) Scan(src any) error {
	if src == nil {
		return nil
	}
	if *c.p == nil {
		*c.p = new(disk.Backing)
	}
	return textCodec[T]{c.field(*c.p)}.Scan(src)
}

// plain turns a value of a Where into what both engines take: string, int64 or
// nil. A named string or integer type counts as what it is made of.
func plain(v any) (any, error) {
	switch x := v.(type) {
	case nil, string, int64:
		return x, nil
	case bool:
		return flagCodec{&x}.value()
	case time.Time:
		return x.UnixMicro(), nil
	}
	switch r := reflect.ValueOf(v); r.Kind() {
	case reflect.String:
		return r.String(), nil
	case reflect.Int, reflect.Int64, reflect.Int32:
		return r.Int(), nil
	}
	return nil, errs.New(errs.Internal, "store.where", "", "a value of type %T cannot be compared with a column", v)
}
