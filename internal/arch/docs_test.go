package arch_test

import (
	"encoding/xml"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"unicode"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/cli"
	"github.com/tarn-storage/tarn/internal/disk"
	"github.com/tarn-storage/tarn/internal/exit"
	"github.com/tarn-storage/tarn/internal/pool/all"
)

var update = flag.Bool("update", false, "rewrite the generated parts of the documentation")

const top = "../.."

// pages returns the project's Markdown files by their path below its root.
func pages(t *testing.T) map[string]string {
	t.Helper()
	found := map[string]string{}
	err := filepath.WalkDir(top, func(p string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && p != top && (strings.HasPrefix(d.Name(), ".") || d.Name() == "testdata" || d.Name() == "bin"):
			return filepath.SkipDir
		case filepath.Ext(p) == ".md":
			text, err := os.ReadFile(p)
			rel, _ := filepath.Rel(top, p)
			found[rel] = string(text)
			return err
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, must := range []string{"README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/architecture.md", "docs/operating.md",
		"docs/safety.md", "docs/formats.md", "docs/reference.md", "docs/drivers.md", "docs/benchmarks.md", "docs/testing.md"} {
		if found[must] == "" {
			t.Errorf("%s is missing or empty", must)
		}
	}
	return found
}

var (
	fenced  = regexp.MustCompile("(?ms)^```([a-z]*)\n(.*?)^```$")
	linked  = regexp.MustCompile(`\]\(([^)\s]+)\)|(?:src|srcset|href)="([^"]+)"`)
	heading = regexp.MustCompile(`(?m)^#+ +(.+?) *$`)
	inline  = regexp.MustCompile("`(tarn [^`]+)`")
)

// anchors returns the fragments by which a page's headings can be linked.
func anchors(text string) []string {
	var all []string
	for _, m := range heading.FindAllStringSubmatch(fenced.ReplaceAllString(text, ""), -1) {
		all = append(all, strings.Map(func(r rune) rune {
			switch {
			case r == ' ':
				return '-'
			case unicode.IsLetter(r), unicode.IsDigit(r), r == '-', r == '_':
				return unicode.ToLower(r)
			}
			return -1
		}, m[1]))
	}
	return all
}

// TestDocsLinks follows every relative link, to its heading where it names one.
func TestDocsLinks(t *testing.T) {
	all := pages(t)
	links := 0
	for page, text := range all {
		for _, m := range linked.FindAllStringSubmatch(fenced.ReplaceAllString(text, ""), -1) {
			link := m[1] + m[2]
			if strings.Contains(link, "://") {
				continue
			}
			links++
			path, fragment, _ := strings.Cut(link, "#")
			target := page
			if path != "" {
				target = filepath.Join(filepath.Dir(page), path)
			}
			if _, err := os.Stat(filepath.Join(top, target)); err != nil {
				t.Errorf("%s links to %s, which is not there", page, link)
			}
			if fragment != "" && !slices.Contains(anchors(all[target]), fragment) {
				t.Errorf("%s links to %s; %s has no such heading", page, link, target)
			}
		}
	}
	if links < 20 {
		t.Errorf("only %d links were found", links)
	}
}

// TestDocsPictures holds that every picture is well-formed and loads nothing.
func TestDocsPictures(t *testing.T) {
	files, err := filepath.Glob(filepath.Join(top, "docs", "*.svg"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no pictures: %v", err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		d := xml.NewDecoder(strings.NewReader(string(text)))
		title := false
		for {
			token, err := d.Token()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatalf("%s: %v", file, err)
			}
			if e, ok := token.(xml.StartElement); ok {
				title = title || e.Name.Local == "title"
				if e.Name.Local == "script" || e.Name.Local == "image" || e.Name.Local == "foreignObject" {
					t.Errorf("%s has an element %s", file, e.Name.Local)
				}
			}
		}
		if !title {
			t.Errorf("%s has no title for those who cannot see it", file)
		}
	}
}

// TestDocsCommands runs every documented command line of tarn through the
// grammar: commands, flags, their values and the number of arguments.
func TestDocsCommands(t *testing.T) {
	seen := 0
	for page, text := range pages(t) {
		for _, block := range fenced.FindAllStringSubmatch(text, -1) {
			for _, line := range commandLines(block[1], block[2]) {
				for _, args := range commands(line) {
					seen++
					if err := grammar(args); err != nil {
						t.Errorf("%s: %s\n\t%v", page, line, err)
					}
				}
			}
			if block[1] == "" {
				t.Errorf("%s: a code block does not say what it holds: %.60q", page, block[2])
			}
		}
		for _, m := range inline.FindAllStringSubmatch(fenced.ReplaceAllString(text, ""), -1) {
			seen++
			if err := known(strings.Fields(m[1])[1:]); err != nil {
				t.Errorf("%s: `%s`: %v", page, m[1], err)
			}
		}
	}
	if seen < 60 {
		t.Errorf("only %d command lines were found", seen)
	}
	each(cli.Tree(), func(c *cobra.Command) {
		for _, line := range commandLines("sh", c.Example) {
			for _, args := range commands(line) {
				if err := grammar(args); err != nil {
					t.Errorf("example of %s: %s\n\t%v", c.CommandPath(), line, err)
				}
			}
		}
	})
}

// TestDocsClasses holds that the safety page explains exactly the classes of
// the gate's refusals.
func TestDocsClasses(t *testing.T) {
	class := regexp.MustCompile(`(?m)^\s+[A-Za-z]+\s+= "([A-Z_]+)"`)
	source, err := os.ReadFile(filepath.Join(top, "diskfmt/strict/strict.go"))
	if err != nil {
		t.Fatal(err)
	}
	var want, got []string
	for _, m := range class.FindAllStringSubmatch(string(source), -1) {
		want = append(want, m[1])
	}
	for _, m := range regexp.MustCompile("`([A-Z_]{5,})`").FindAllStringSubmatch(pages(t)["docs/safety.md"], -1) {
		got = append(got, m[1])
	}
	slices.Sort(want)
	slices.Sort(got)
	if len(want) < 10 || !slices.Equal(got, want) {
		t.Errorf("docs/safety.md explains the classes\n%v, the gate has\n%v", got, want)
	}
}

// TestDocsDaemon holds that the documented flags of tarnd exist.
func TestDocsDaemon(t *testing.T) {
	source, err := os.ReadFile(filepath.Join(top, "internal/daemon/main.go"))
	if err != nil {
		t.Fatal(err)
	}
	flags := []string{"help"}
	for _, m := range regexp.MustCompile(`f\.(?:String|Bool)\("([a-z-]+)"`).FindAllStringSubmatch(string(source), -1) {
		flags = append(flags, m[1])
	}
	seen := 0
	for page, text := range pages(t) {
		for _, m := range regexp.MustCompile(`\btarnd((?: --?[a-z-]+[ =][^\s`+"`"+`]+)+)`).FindAllStringSubmatch(text, -1) {
			for _, f := range regexp.MustCompile(` --([a-z-]+)`).FindAllStringSubmatch(m[1], -1) {
				seen++
				if !slices.Contains(flags, f[1]) {
					t.Errorf("%s: tarnd%s: tarnd has no flag --%s", page, m[1], f[1])
				}
			}
		}
	}
	if seen < 3 {
		t.Errorf("only %d flags of tarnd were found", seen)
	}
}

// commandLines returns the commands in a code block: all lines of a script,
// what follows the prompt in a session, nothing of anything else.
func commandLines(kind, text string) []string {
	var lines []string
	for line := range strings.Lines(strings.ReplaceAll(text, "\\\n", " ")) {
		line = strings.TrimSpace(line)
		if command, prompted := strings.CutPrefix(line, "$ "); kind == "sh" || kind == "console" && prompted {
			lines = append(lines, command)
		}
	}
	return lines
}

// commands returns the arguments of every call of tarn in a line of shell,
// those in substitutions included.
func commands(line string) [][]string {
	var found [][]string
	var words []string
	end := func() {
		if i := slices.Index(words, "tarn"); i >= 0 && introduces(words[:i]) {
			found = append(found, words[i+1:])
		}
		words = nil
	}
	word, open, quote := "", false, rune(0)
	flush := func() {
		if open {
			words = append(words, word)
		}
		word, open = "", false
	}
	runes := []rune(line)
	for i := 0; i < len(runes); i++ {
		r := runes[i]
		switch {
		case quote != '\'' && (r == '$' || r == '<' && quote == 0) && i+1 < len(runes) && runes[i+1] == '(':
			close := matching(runes, i+1)
			found = append(found, commands(string(runes[i+2:close]))...)
			word, open, i = word+"substituted", true, close
		case quote != 0 && r == quote:
			quote = 0
		case quote != 0:
			word += string(r)
		case r == '\'' || r == '"':
			quote, open = r, true
		case r == '#' && !open:
			flush()
			end()
			return found
		case r == ' ' || r == '\t':
			flush()
		case strings.ContainsRune("|&;<>()", r):
			flush()
			end()
		default:
			word, open = word+string(r), true
		}
	}
	flush()
	end()
	return found
}

// introduces reports whether what follows words is a command of its own.
func introduces(words []string) bool {
	if len(words) == 0 {
		return true
	}
	last := words[len(words)-1]
	return last == "--" || last == "sudo" || last == "then" || last == "do" || last == "if" || last == "!" || strings.Contains(last, "=") && !strings.HasPrefix(last, "-")
}

// matching returns where the parenthesis at runes[i] is closed.
func matching(runes []rune, i int) int {
	for depth := 0; i < len(runes); i++ {
		switch runes[i] {
		case '(':
			depth++
		case ')':
			if depth--; depth == 0 {
				return i
			}
		}
	}
	return len(runes) - 1
}

func each(c *cobra.Command, visit func(*cobra.Command)) {
	visit(c)
	for _, sub := range c.Commands() {
		each(sub, visit)
	}
}

// grammar returns what tarn would find wrong with a command line before it
// asked a daemon.
func grammar(args []string) error {
	root := cli.Tree()
	each(root, func(c *cobra.Command) {
		if !c.HasSubCommands() {
			c.RunE = func(*cobra.Command, []string) error { return nil }
		}
	})
	root.SetArgs(args)
	root.SetOut(io.Discard)
	root.SetErr(io.Discard)
	return root.Execute()
}

// known returns an error unless the command and the flags that words name
// exist. What stands for a value is not looked at.
func known(words []string) error {
	cmd, rest, err := cli.Tree().Find(words)
	if err != nil {
		return err
	}
	if cmd.HasSubCommands() && len(rest) > 0 && !strings.HasPrefix(rest[0], "-") {
		return fmt.Errorf("%s has no command %q", cmd.CommandPath(), rest[0])
	}
	for _, w := range words {
		long, isLong := strings.CutPrefix(w, "--")
		name, _, _ := strings.Cut(long, "=")
		if isLong && name != "help" && cmd.Flag(name) == nil && cmd.InheritedFlags().Lookup(name) == nil {
			return fmt.Errorf("%s has no flag --%s", cmd.CommandPath(), name)
		}
	}
	return nil
}

// generated compares, or with -update rewrites, the part of a page between its
// two markers.
func generated(t *testing.T, page, want string) {
	t.Helper()
	const begin, end = "<!-- generated: go test ./internal/arch -run Docs -update -->\n", "<!-- end of the generated part -->\n"
	file := filepath.Join(top, page)
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	head, rest, ok := strings.Cut(string(text), begin)
	got, tail, closed := strings.Cut(rest, end)
	if !ok || !closed {
		t.Fatalf("%s has no generated part", page)
	}
	if got == want {
		return
	}
	if !*update {
		t.Fatalf("%s is not what the code says; run: go test ./internal/arch -run Docs -update", page)
	}
	if err := os.WriteFile(file, []byte(head+begin+want+end+tail), 0o644); err != nil {
		t.Fatal(err)
	}
}

// TestDocsDrivers makes the table of capabilities from what drivers declare.
func TestDocsDrivers(t *testing.T) {
	yes := map[bool]string{true: "yes", false: "no"}
	var b strings.Builder
	b.WriteString("\n| driver | formats | clone of a base | snapshot | shrink | live grow | holes known | size unit | longest name | needs | takes |\n")
	b.WriteString("|---|---|---|---|---|---|---|---|---|---|---|\n")
	for _, d := range all.Types() {
		c := d.Capabilities
		var formats []string
		for _, f := range c.Formats {
			formats = append(formats, string(f))
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s | %s | %s | %s | %s | %d bytes | %s | %s |\n", d.Name, strings.Join(formats, ", "), c.Clone, c.Snapshot,
			yes[c.Shrink], yes[c.LiveGrow], yes[c.HolesKnown], disk.FormatSize(c.SizeUnit), c.MaxName, flagNames(d.Needs), flagNames(d.Takes))
	}
	b.WriteString("\n")
	for _, d := range all.Types() {
		fmt.Fprintf(&b, "- `%s`: %s.\n", d.Name, d.Capabilities.Description)
	}
	b.WriteString("\n")
	generated(t, "docs/drivers.md", b.String())
}

// flagNames writes the flags of pool create that fields are given with.
func flagNames(fields []disk.SourceField) string {
	var names []string
	for _, f := range fields {
		names = append(names, "`--"+string(f)+"`")
	}
	return strings.Join(names, " ")
}

// TestDocsReference makes the reference from the tree of commands.
func TestDocsReference(t *testing.T) {
	for _, name := range []string{"TARN_URL", "TARN_CERT", "TARN_KEY", "TARN_CA"} {
		t.Setenv(name, "") // they are defaults of flags
	}
	var b strings.Builder
	root := cli.Tree()
	b.WriteString("\n## Flags of every command\n\n")
	writeFlags(&b, root.PersistentFlags())
	writeStatuses(&b)
	for _, noun := range root.Commands() {
		if noun.Hidden {
			continue
		}
		fmt.Fprintf(&b, "\n## %s\n", noun.CommandPath())
		writeCommand(&b, noun)
		for _, verb := range noun.Commands() {
			fmt.Fprintf(&b, "\n### %s\n", verb.CommandPath())
			writeCommand(&b, verb)
		}
	}
	b.WriteString("\n")
	generated(t, "docs/reference.md", b.String())
}

// spec matches the lines of a grammar in a command's text.
var spec = regexp.MustCompile(`(?m)\n?^SPEC = (.*\n(?:  .*\n)*)`)

func writeCommand(b *strings.Builder, c *cobra.Command) {
	fmt.Fprintf(b, "\n%s\n", spec.ReplaceAllString(strings.ReplaceAll(c.Long, "<", "&lt;"), "\n```text\nSPEC = $1```\n\n"))
	if c.HasSubCommands() {
		return
	}
	fmt.Fprintf(b, "\n```text\n%s\n```\n", strings.TrimSuffix(c.UseLine(), " [flags]"))
	if len(c.Aliases) > 0 {
		fmt.Fprintf(b, "\nAlso: `%s`.\n", strings.Join(c.Aliases, "`, `"))
	}
	if c.LocalFlags().HasAvailableFlags() {
		b.WriteString("\n")
		writeFlags(b, c.LocalFlags())
	}
	if lines := commandLines("sh", c.Example); len(lines) > 0 {
		fmt.Fprintf(b, "\n```sh\n%s\n```\n", strings.Join(lines, "\n"))
	}
}

func writeFlags(b *strings.Builder, flags *pflag.FlagSet) {
	b.WriteString("| flag | meaning |\n|---|---|\n")
	flags.VisitAll(func(f *pflag.Flag) {
		if f.Hidden || f.Name == "help" {
			return
		}
		value, meaning := pflag.UnquoteUsage(f)
		name := "--" + f.Name
		if f.Shorthand != "" {
			name = "-" + f.Shorthand + ", " + name
		}
		if value != "" {
			name += " " + strings.ReplaceAll(value, "|", "\\|")
		}
		if f.DefValue != "" && f.DefValue != "false" && f.DefValue != "[]" && f.DefValue != "0" {
			meaning += " (default " + f.DefValue + ")"
		}
		fmt.Fprintf(b, "| `%s` | %s |\n", name, strings.ReplaceAll(meaning, "|", "\\|"))
	})
}

// writeStatuses makes the table of exit statuses from the one that programs use.
func writeStatuses(b *strings.Builder) {
	kinds := map[int][]string{}
	for _, k := range errs.Kinds() {
		status := exit.Status(errs.New(k, "", "", "sample"))
		kinds[status] = append(kinds[status], "`"+string(k)+"`")
	}
	b.WriteString("\n## Exit statuses\n\n| status | kinds of error |\n|---|---|\n| 0 | none: done |\n")
	for status := range 256 {
		if names := kinds[status]; len(names) > 0 {
			fmt.Fprintf(b, "| %s | %s |\n", strconv.Itoa(status), strings.Join(names, ", "))
		}
	}
	fmt.Fprintf(b, "\nEvery refusal of an image by the gate is %d, whatever its kind. `tarn doctor` ends with %d when it leaves problems.\n", exit.Refused, exit.Problems)
}
