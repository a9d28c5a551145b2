package hostexec

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/tarn-storage/tarn/errs"
)

// literal is a word fixed in tarn's source. Its type is unexported and no
// exported function returns it, so another package can only write it as an
// untyped constant: no variable, and therefore no user's byte, fits in.
type literal string

// Option is one option of a program: a literal flag, with a value in a word
// of its own or without.
type Option struct {
	flag   literal
	value  *Value
	joined bool // flag and value are one word
}

// Flag is an option without a value, or with a value that is part of the
// source.
func Flag(flag literal) Option { return Option{flag: flag} }

// OptionValue is an option that takes the next word as its value, whatever
// byte that begins with.
func OptionValue(flag literal, v Value) Option { return Option{flag: flag, value: &v} }

// Joined is an option and its value in one word, "--flag=value": for programs
// that look for options in every word, values too.
func Joined(flag literal, v Value) Option { return Option{flag: flag, value: &v, joined: true} }

// Value is what fills one slot of argv: exactly one word.
type Value struct {
	word string
	file *os.File
}

// Word is a literal value.
func Word(w literal) Value { return Value{word: string(w)} }

// Text is a value made of a user's bytes. It may hold anything but NUL.
func Text(s string) Value { return Value{word: s} }

// Uint is a value written in decimal.
func Uint(n uint64) Value { return Value{word: strconv.FormatUint(n, 10)} }

// File passes f's descriptor to the program and names it in argv. The program
// opens it again, so it needs the right to read and write the file itself.
func File(f *os.File) Value { return Value{file: f} }

// words renders argv and the files it names, in the order of their
// descriptors from 3 on.
func (c Call) words(path string) (argv []string, files []*os.File, err error) {
	argv, files = append(argv, path), append(files, c.Files...)
	add := func(v Value) {
		if v.file != nil {
			argv = append(argv, fmt.Sprintf("/proc/self/fd/%d", 3+len(files)))
			files = append(files, v.file)
			return
		}
		argv = append(argv, v.word)
	}
	for _, o := range c.Options {
		if o.joined {
			add(*o.value)
			argv[len(argv)-1] = string(o.flag) + "=" + argv[len(argv)-1]
			continue
		}
		argv = append(argv, string(o.flag))
		if o.value != nil {
			add(*o.value)
		}
	}
	if len(c.Operands) > 0 && programs[c.Program].terminator {
		argv = append(argv, "--")
	}
	for _, v := range c.Operands {
		if !programs[c.Program].terminator && strings.HasPrefix(v.word, "-") {
			return nil, nil, errs.New(errs.Invalid, "tool.run", c.Program.String(), "%q would be read as an option", v.word)
		}
		add(v)
	}
	for _, w := range argv {
		if strings.ContainsRune(w, 0) {
			return nil, nil, errs.New(errs.Invalid, "tool.run", c.Program.String(), "the argument %q holds a NUL byte", w)
		}
	}
	return argv, files, nil
}
