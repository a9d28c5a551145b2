package main

import (
	"path/filepath"
	"strings"
	"testing"
)

const (
	passed  = `{"Action":"pass","Package":"p","Test":"TestA","Elapsed":0.1}`
	skipped = `{"Action":"output","Package":"p","Test":"TestB","Output":"=== RUN   TestB\n"}
{"Action":"output","Package":"p","Test":"TestB","Output":"    b_test.go:7: needs root\n"}
{"Action":"output","Package":"p","Test":"TestB","Output":"--- SKIP: TestB (0.00s)\n"}
{"Action":"skip","Package":"p","Test":"TestB"}`
	passedB = `{"Action":"pass","Package":"p","Test":"TestB"}`
	slow    = `{"Action":"output","Package":"p","Test":"TestC","Output":"c_test.go:9: set TARN_SLOW=1\n"}
{"Action":"skip","Package":"p","Test":"TestC"}`
	inapplicable = `{"Action":"output","Package":"p","Test":"TestE","Output":"e_test.go:9: does not apply: no such kernel\n"}
{"Action":"skip","Package":"p","Test":"TestE"}`
	needsMore = `{"Action":"output","Package":"p","Test":"TestE","Output":"e_test.go:9: needs root\n"}
{"Action":"skip","Package":"p","Test":"TestE"}`
	failed = `{"Action":"output","Package":"p","Test":"TestD","Output":"got 1, want 2\n"}
{"Action":"fail","Package":"p","Test":"TestD"}
{"Action":"fail","Package":"p","Elapsed":1}`
	broken = `{"Action":"build-output","ImportPath":"q","Output":"q.go:1: syntax error\n"}
{"Action":"output","Package":"q","Output":"FAIL q [build failed]\n"}
{"Action":"fail","Package":"q"}`
	good  = `{"Action":"pass","Package":"p","Elapsed":1.5}`
	empty = `{"Action":"skip","Package":"r"}`
)

func TestCountAndSum(t *testing.T) {
	tests := []struct {
		name      string
		runs      []string // each the output of one go test
		counts    string   // of the last run
		countGood bool
		sums      string
		sumGood   bool
		says      string // somewhere in the output
	}{
		{"all pass", []string{passed + "\n" + good + "\n" + empty}, "1 passed, 0 failed, 0 skipped", true, "1 passed, 0 failed, 0 skipped", true, "ok  \tp\t1.50s\t1 tests"},
		{"never executed", []string{passed + "\n" + skipped}, "1 passed, 0 failed, 1 skipped", true, "1 passed, 0 failed, 1 skipped", false, "NEVER EXECUTED p.TestB: b_test.go:7: needs root"},
		{"skipped once, passed later", []string{skipped, passedB}, "1 passed, 0 failed, 0 skipped", true, "1 passed, 0 failed, 0 skipped", true, ""},
		{"passed once, skipped later", []string{passedB, skipped}, "0 passed, 0 failed, 1 skipped", true, "1 passed, 0 failed, 0 skipped", true, ""},
		{"left to the slow suite", []string{passed + "\n" + slow}, "1 passed, 0 failed, 1 skipped", true, "1 passed, 0 failed, 1 skipped", true, ""},
		{"not for this machine", []string{passed + "\n" + inapplicable}, "1 passed, 0 failed, 1 skipped", true, "1 passed, 0 failed, 1 skipped", true, ""},
		{"not for this machine, as root knows", []string{passed + "\n" + needsMore, inapplicable}, "0 passed, 0 failed, 1 skipped", true, "1 passed, 0 failed, 1 skipped", true, ""},
		{"a failure", []string{passed + "\n" + failed}, "1 passed, 1 failed, 0 skipped", false, "1 passed, 1 failed, 0 skipped", false, "got 1, want 2"},
		{"failed once, passed later", []string{failed, `{"Action":"pass","Package":"p","Test":"TestD"}`}, "1 passed, 0 failed, 0 skipped", true, "0 passed, 1 failed, 0 skipped", false, "FAILED         p.TestD"},
		{"does not build", []string{passed + "\n" + broken}, "1 passed, 1 failed, 0 skipped", false, "1 passed, 1 failed, 0 skipped", false, "q.go:1: syntax error"},
		{"nothing ran", []string{empty}, "0 passed, 0 failed, 0 skipped", true, "0 passed, 0 failed, 0 skipped", false, ""},
		{"slow ones are named", []string{`{"Action":"pass","Package":"p","Test":"TestA","Elapsed":61.25}`}, "1 passed, 0 failed, 0 skipped", true, "   61.2 s  p.TestA\n1 passed, 0 failed, 0 skipped", true, ""},
		{"not JSON", []string{"go: cannot find module\n" + passed}, "1 passed, 0 failed, 0 skipped", true, "1 passed, 0 failed, 0 skipped", true, "go: cannot find module"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "results")
			var all, last strings.Builder
			var countGood bool
			for _, run := range tt.runs {
				last.Reset()
				var err error
				if countGood, err = countInto(file, strings.NewReader(run+"\n"), &last); err != nil {
					t.Fatal(err)
				}
				all.WriteString(last.String())
			}
			if countGood != tt.countGood || !strings.HasSuffix(last.String(), tt.counts+"\n") {
				t.Errorf("count: got %v, %q, want %v, %q at the end", countGood, last.String(), tt.countGood, tt.counts)
			}
			last.Reset()
			sumGood, err := sumFile(file, &last)
			if err != nil {
				t.Fatal(err)
			}
			all.WriteString(last.String())
			if sumGood != tt.sumGood || !strings.HasSuffix(last.String(), tt.sums+"\n") {
				t.Errorf("sum: got %v, %q, want %v, %q at the end", sumGood, last.String(), tt.sumGood, tt.sums)
			}
			if !strings.Contains(all.String(), tt.says) {
				t.Errorf("output: got %q, want %q in it", all.String(), tt.says)
			}
		})
	}
}
