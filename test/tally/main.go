// Command tally counts tests. It reads the output of "go test -json", prints a
// line for each package and everything a failed test said, and adds what
// happened to a file; from that file it prints the sum of several runs and
// which tests took longest. It refuses to call a run good in which a test was skipped every time: a suite
// that skips what it came for proves nothing.
//
//	go test -json ./... | tally FILE
//	tally -sum FILE
package main

import (
	"bufio"
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
)

func main() {
	var good bool
	var err error
	switch args := os.Args[1:]; {
	case len(args) == 2 && args[0] == "-sum":
		good, err = sumFile(args[1], os.Stdout)
	case len(args) == 1:
		good, err = countInto(args[0], os.Stdin, os.Stdout)
	default:
		err = fmt.Errorf("usage: tally FILE | tally -sum FILE")
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "tally:", err)
		os.Exit(2)
	}
	if !good {
		os.Exit(1)
	}
}

// event is a line of "go test -json" (see "go doc test2json").
type event struct {
	Action, Package, Test, Output, ImportPath string
	Elapsed                                   float64
}

// outcome is one test's end in one run, a line of the file. A package that
// fails without a failed test (it does not build, it panics) is an outcome
// without a test.
type outcome struct {
	Result  string `json:"result"` // pass, fail, skip
	Package string `json:"package"`
	Test    string `json:"test,omitempty"`
	Reason  string `json:"reason,omitempty"` // what a skipped test said

	Seconds float64 `json:"seconds,omitempty"` // of wall time, others running beside it
}

func (o outcome) id() string { return strings.TrimSuffix(o.Package+"."+o.Test, ".") }

func countInto(path string, in io.Reader, out io.Writer) (bool, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return false, err
	}
	outcomes, err := count(in, out)
	if err != nil {
		f.Close()
		return false, err
	}
	enc := json.NewEncoder(f)
	for _, o := range outcomes {
		if err := enc.Encode(o); err != nil {
			f.Close()
			return false, err
		}
	}
	n := numbers(outcomes)
	fmt.Fprintf(out, "%d passed, %d failed, %d skipped\n", n["pass"], n["fail"], n["skip"])
	return n["fail"] == 0, f.Close()
}

// count reads events until the end of in.
func count(in io.Reader, out io.Writer) ([]outcome, error) {
	var outcomes []outcome
	said := map[string]*strings.Builder{} // output by test, "" for a package
	lines := bufio.NewScanner(in)
	lines.Buffer(nil, 16<<20)
	for lines.Scan() {
		var e event
		if json.Unmarshal(lines.Bytes(), &e) != nil || e.Action == "" {
			fmt.Fprintln(out, lines.Text()) // not a line of test2json: go's own word
			continue
		}
		key := e.Package + "\x00" + e.Test
		switch e.Action {
		case "build-output":
			fmt.Fprint(out, e.Output)
		case "output":
			if said[key] == nil {
				said[key] = new(strings.Builder)
			}
			said[key].WriteString(e.Output)
		case "pass", "fail", "skip":
			o := outcome{Result: e.Action, Package: e.Package, Test: e.Test, Seconds: e.Elapsed}
			var text string
			if b := said[key]; b != nil {
				text = b.String()
				delete(said, key)
			}
			if e.Test == "" {
				report(out, e, outcomes, text)
				if e.Action != "fail" || failedIn(outcomes, e.Package) {
					continue // an empty package, or its tests said it
				}
			} else if e.Action == "fail" {
				fmt.Fprint(out, text)
			} else if e.Action == "skip" {
				o.Reason = reason(text)
			}
			outcomes = append(outcomes, o)
		}
	}
	return outcomes, lines.Err()
}

// report prints a package's line.
func report(out io.Writer, e event, outcomes []outcome, text string) {
	n := 0
	for _, o := range outcomes {
		if o.Package == e.Package {
			n++
		}
	}
	switch {
	case e.Action == "fail" && !failedIn(outcomes, e.Package):
		fmt.Fprintf(out, "%sFAIL\t%s\t%.2fs\n", text, e.Package, e.Elapsed)
	case e.Action == "fail":
		fmt.Fprintf(out, "FAIL\t%s\t%.2fs\t%d tests\n", e.Package, e.Elapsed, n)
	case n > 0:
		fmt.Fprintf(out, "ok  \t%s\t%.2fs\t%d tests\n", e.Package, e.Elapsed, n)
	}
}

func failedIn(outcomes []outcome, pkg string) bool {
	return slices.ContainsFunc(outcomes, func(o outcome) bool { return o.Package == pkg && o.Result == "fail" })
}

// reason is what a skipped test said, without go's own lines.
func reason(text string) string {
	var words []string
	for line := range strings.Lines(text) {
		if line = strings.TrimSpace(line); !strings.HasPrefix(line, "===") && !strings.HasPrefix(line, "---") {
			words = append(words, line)
		}
	}
	return strings.Join(words, " ")
}

func numbers(outcomes []outcome) map[string]int {
	n := map[string]int{}
	for _, o := range outcomes {
		n[o.Result]++
	}
	return n
}

func sumFile(path string, out io.Writer) (bool, error) {
	f, err := os.Open(path)
	if err != nil {
		return false, err
	}
	defer f.Close()
	var outcomes []outcome
	for dec := json.NewDecoder(f); ; {
		var o outcome
		if err := dec.Decode(&o); err == io.EOF {
			slowest(outcomes, out)
			return sum(outcomes, out), nil
		} else if err != nil {
			return false, fmt.Errorf("%s: %w", path, err)
		}
		outcomes = append(outcomes, o)
	}
}

// slowest prints the runs of tests, subtests within them, that took longest.
func slowest(outcomes []outcome, out io.Writer) {
	const shown, worth = 20, 5 // seconds
	tests := slices.DeleteFunc(slices.Clone(outcomes), func(o outcome) bool {
		return o.Seconds < worth || strings.Contains(o.Test, "/")
	})
	slices.SortStableFunc(tests, func(a, b outcome) int { return cmp.Compare(b.Seconds, a.Seconds) })
	for _, o := range tests[:min(len(tests), shown)] {
		fmt.Fprintf(out, "%7.1f s  %s\n", o.Seconds, o.id())
	}
}

// sum counts every test once: failed if it failed in any run, else passed if
// it passed in any. May be skipped everywhere: what waits for TARN_SLOW, and what
// says in any run that it does not apply, since no set-up makes it possible on
// this machine (another run, with fewer rights, may have said less).
func sum(outcomes []outcome, out io.Writer) bool {
	tests := map[string]outcome{}
	for _, o := range outcomes {
		if weight(o) > weight(tests[o.id()]) {
			tests[o.id()] = o
		}
	}
	good := true
	for _, id := range slices.Sorted(maps.Keys(tests)) {
		switch o := tests[id]; {
		case o.Result == "fail":
			good = false
			fmt.Fprintf(out, "FAILED         %s\n", id)
		case weight(o) == unexplained:
			good = false
			fmt.Fprintf(out, "NEVER EXECUTED %s: %s\n", id, o.Reason)
		}
	}
	n := numbers(slices.Collect(maps.Values(tests)))
	fmt.Fprintf(out, "%d passed, %d failed, %d skipped\n", n["pass"], n["fail"], n["skip"])
	return good && n["pass"] > 0
}

// What a run of a test says about it, the heavier word first to be believed.
const (
	unexplained = iota + 1 // a skip that a better set-up would spare
	explained              // a skip with a reason that is accepted
	passes
	fails
)

func weight(o outcome) int {
	switch {
	case o.Result == "fail":
		return fails
	case o.Result == "pass":
		return passes
	case strings.Contains(o.Reason, "TARN_SLOW"), strings.Contains(o.Reason, "does not apply: "):
		return explained
	case o.Result == "skip":
		return unexplained
	}
	return 0
}
