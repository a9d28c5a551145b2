package inspect

import (
	"bytes"
	"encoding/json"
	"io"
	"slices"
	"strconv"
	"unicode/utf8"

	"github.com/tarn-storage/tarn/diskfmt/strict"
)

const (
	maxDepth  = 32
	maxValues = 64 << 10
)

// object is a part of the JSON area. The first complaint about any of its parts
// is kept; what is missing or of another type reads as nothing after that.
type object struct {
	fields map[string]any
	what   string // of it, for people; never a text of the file
	index  int    // its name in a list of numbered objects
	first  *error
}

func (o object) err() error { return *o.first }

func (o object) check(err error) {
	if *o.first == nil {
		*o.first = err
	}
}

func (o object) fail(class, format string, args ...any) {
	if *o.first == nil {
		*o.first = strict.Refuse(class, format, args...)
	}
}

func (o object) has(key string) bool {
	_, found := o.fields[key]
	return found
}

// get returns the field key, which must be of type T.
func get[T any](o object, key string) T {
	v, is := o.fields[key].(T)
	if !is {
		o.fail(strict.Corrupt, "%s has no %s, or one of another type", o.what, key)
	}
	return v
}

// only refuses all fields but these.
func (o object) only(keys ...string) {
	for k := range o.fields {
		if !slices.Contains(keys, k) {
			o.fail(strict.Feature, "%s has a part that is not known: %s (in hex)", o.what, strict.Quote([]byte(k)))
		}
	}
}

func (o object) child(key string) object {
	return object{fields: get[map[string]any](o, key), what: o.what, first: o.first}
}

func (o object) text(key string) string { return get[string](o, key) }

// number reads a whole number.
func (o object) number(key string) uint64 {
	return o.uint(key, string(get[json.Number](o, key)))
}

// bytes reads a number of 64 bits, which LUKS2 writes as a string.
func (o object) bytes(key string) uint64 { return o.uint(key, o.text(key)) }

func (o object) uint(key, s string) uint64 {
	n, err := strconv.ParseUint(s, 10, 63)
	if err != nil {
		o.fail(strict.Corrupt, "%s has a %s that is no whole number: %s (in hex)", o.what, key, strict.Quote([]byte(s)))
	}
	return n
}

// names reads a list of strings.
func (o object) names(key string) []string {
	var list []string
	for _, v := range get[[]any](o, key) {
		s, is := v.(string)
		if !is {
			o.fail(strict.Corrupt, "%s has in its %s something else than strings", o.what, key)
		}
		list = append(list, s)
	}
	return list
}

// singular says what the parts of an object of numbered objects are.
var singular = map[string]string{"keyslots": "key slot ", "segments": "segment ", "digests": "digest ", "tokens": "token "}

// numbered returns the objects "0" to "31" of the field key, in order.
func (o object) numbered(key string) []object {
	m := get[map[string]any](o, key)
	var list []object
	for i := range maxSlots {
		name := strconv.Itoa(i)
		if v, found := m[name]; found {
			fields, is := v.(map[string]any)
			if !is {
				o.fail(strict.Corrupt, "%s%d is no object", singular[key], i)
			}
			list = append(list, object{fields, singular[key] + name, i, o.first})
		}
	}
	if len(list) != len(m) {
		o.fail(strict.Corrupt, "the %s have names other than 0 to %d", key, maxSlots-1)
	}
	return list
}

// parseJSON reads the one object of a JSON area, which zeroes follow. Names that
// come twice are refused: programs differ about which one holds.
func parseJSON(area []byte) (object, error) {
	b, rest, _ := bytes.Cut(area, []byte{0})
	o := object{what: "the JSON area", first: new(error)}
	if len(b) == len(area) || len(bytes.Trim(rest, "\x00")) > 0 {
		return o, strict.Refuse(strict.Corrupt, "the JSON area does not end in zeroes")
	}
	if !utf8.Valid(b) || len(b) == 0 || b[0] != '{' {
		return o, strict.Refuse(strict.Corrupt, "the JSON area does not begin with an object, or is no UTF-8 text")
	}
	p := parser{dec: json.NewDecoder(bytes.NewReader(b))}
	p.dec.UseNumber()
	v, err := p.value(0)
	if err != nil {
		return o, err
	}
	if _, err := p.dec.Token(); err != io.EOF {
		return o, strict.Refuse(strict.Corrupt, "there is more than one object in the JSON area")
	}
	o.fields = v.(map[string]any) // it began with a brace
	return o, nil
}

type parser struct {
	dec    *json.Decoder
	values int
}

// token returns the next token, or a refusal.
func (p *parser) token() (json.Token, error) {
	at := p.dec.InputOffset()
	t, err := p.dec.Token()
	if err != nil {
		return nil, strict.Refuse(strict.Corrupt, "byte %d of the JSON area: no JSON", at)
	}
	if p.values++; p.values > maxValues {
		return nil, strict.Refuse(strict.Limit, "byte %d of the JSON area: more than %d values", at, maxValues)
	}
	return t, nil
}

func (p *parser) value(depth int) (any, error) {
	t, err := p.token()
	if err != nil {
		return nil, err
	}
	d, nested := t.(json.Delim)
	if !nested {
		return t, nil
	}
	if depth++; depth > maxDepth {
		return nil, strict.Refuse(strict.Limit, "byte %d of the JSON area: nested more than %d deep", p.dec.InputOffset(), maxDepth)
	}
	if d == '{' {
		return p.object(depth)
	}
	return p.list(depth)
}

func (p *parser) object(depth int) (any, error) {
	m := map[string]any{}
	for p.dec.More() {
		k, err := p.token()
		if err != nil {
			return nil, err
		}
		key, _ := k.(string) // the decoder lets nothing else be one
		if _, twice := m[key]; twice {
			return nil, strict.Refuse(strict.Corrupt, "byte %d of the JSON area: a name comes twice", p.dec.InputOffset())
		}
		if m[key], err = p.value(depth); err != nil {
			return nil, err
		}
	}
	_, err := p.token()
	return m, err
}

func (p *parser) list(depth int) (any, error) {
	list := []any{}
	for p.dec.More() {
		v, err := p.value(depth)
		if err != nil {
			return nil, err
		}
		list = append(list, v)
	}
	_, err := p.token()
	return list, err
}
