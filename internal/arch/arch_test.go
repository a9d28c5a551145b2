// Package arch holds the rules of the code base that a compiler does not:
// which package may import which, and what only some packages may use. It
// parses the sources in process, so that no test cache hides a violation.
package arch_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/tarn-storage/tarn"

// may lists, lowest level first, every package and the project packages it may
// import. A package earns its line here; imports go strictly downward.
var may = []struct {
	pkg     string
	imports string
}{
	{"errs", ""},
	{"internal/faults", ""},
	{"internal/faults/faultstest", "internal/faults"},

	{"diskfmt", ""},
	{"diskfmt/diskfmttest", "diskfmt"},
	{"diskfmt/strict", "diskfmt errs"},
	{"diskfmt/inflate", ""},
	{"diskfmt/unpack", "diskfmt/strict"},
	{"diskfmt/ova", "diskfmt/strict"},
	{"internal/config", "diskfmt errs"},

	{"diskfmt/raw", "diskfmt errs"},
	{"diskfmt/qcow2/internal/layout", "diskfmt diskfmt/inflate"},
	{"diskfmt/qcow2", "diskfmt diskfmt/qcow2/internal/layout errs"},
	{"diskfmt/qcow2/inspect", "diskfmt diskfmt/qcow2/internal/layout errs"},
	{"diskfmt/internal/pages", ""},
	{"diskfmt/internal/blockmap", "diskfmt diskfmt/internal/pages diskfmt/strict errs"},
	{"diskfmt/internal/crashtest", ""},
	{"diskfmt/internal/doortest", "diskfmt diskfmt/strict errs"},
	{"diskfmt/internal/whole", "diskfmt diskfmt/strict errs"},
	{"diskfmt/luks/inspect", "diskfmt/internal/whole diskfmt/strict errs"},
	{"diskfmt/iso/inspect", "diskfmt/internal/whole diskfmt/strict errs"},
	{"diskfmt/parallels/internal/layout", ""},
	{"diskfmt/parallels", "diskfmt diskfmt/parallels/internal/layout errs"},
	{"diskfmt/parallels/bundle", "diskfmt/strict errs"},
	{"diskfmt/parallels/inspect", "diskfmt/internal/blockmap diskfmt/parallels/internal/layout diskfmt/strict errs"},
	{"diskfmt/internal/blocks", "diskfmt errs"},
	{"diskfmt/internal/blocks/blockstest", "diskfmt"},
	{"diskfmt/vhdx/internal/layout", ""},
	{"diskfmt/vhdx", "diskfmt diskfmt/internal/blocks diskfmt/vhdx/internal/layout errs"},
	{"diskfmt/vhdx/inspect", "diskfmt diskfmt/internal/pages diskfmt/strict diskfmt/vhdx/internal/layout errs"},
	{"diskfmt/vhd/internal/layout", ""},
	{"diskfmt/vhd", "diskfmt diskfmt/internal/blocks diskfmt/vhd/internal/layout errs"},
	{"diskfmt/vhd/inspect", "diskfmt diskfmt/strict diskfmt/vhd/internal/layout errs"},
	{"diskfmt/vdi/internal/layout", ""},
	{"diskfmt/vdi", "diskfmt diskfmt/internal/blocks diskfmt/vdi/internal/layout errs"},
	{"diskfmt/vdi/inspect", "diskfmt/internal/blockmap diskfmt/strict diskfmt/vdi/internal/layout errs"},
	{"diskfmt/vmdk/internal/layout", ""},
	{"diskfmt/vmdk", "diskfmt diskfmt/vmdk/internal/layout errs"},
	{"diskfmt/vmdk/inspect", "diskfmt diskfmt/inflate diskfmt/strict diskfmt/vmdk/internal/layout errs"},
	{"api", "errs"},
	{"internal/exit", "api errs"},
	{"internal/fetch", "errs"},
	{"internal/signature", "errs"},
	{"internal/disk", "diskfmt errs"},

	{"client", "api errs"},
	{"internal/blkio", "diskfmt errs internal/faults"},
	{"internal/hostexec", "errs internal/faults"},
	{"internal/generate", "errs internal/hostexec"},
	{"internal/plan", "diskfmt errs internal/disk"},
	{"internal/journal", "errs internal/faults"},

	{"internal/nbd", "errs"},
	{"internal/volio", "diskfmt diskfmt/qcow2 diskfmt/raw diskfmt/vdi diskfmt/vhd diskfmt/vhdx diskfmt/vmdk errs internal/blkio"},
	{"internal/store", "diskfmt errs internal/disk internal/faults internal/journal"},
	{"internal/store/sqlite", "errs internal/store"},
	{"internal/store/postgres", "errs internal/store"},
	{"internal/store/storetest", "errs internal/disk internal/faults internal/journal internal/store"},
	{"internal/sniff", "diskfmt"},
	{"internal/pool/driver", "diskfmt internal/disk"},
	{"internal/pool/drivertest", "diskfmt errs internal/blkio internal/disk internal/faults internal/faults/faultstest internal/pool/driver"},

	{"internal/pool/imagelock", "errs internal/pool/driver"},
	{"internal/pool/dirdrv", "diskfmt errs internal/blkio internal/disk internal/faults internal/pool/driver internal/pool/imagelock"},
	{"internal/pool/lvmdrv", "diskfmt errs internal/blkio internal/disk internal/faults internal/hostexec internal/pool/driver internal/pool/imagelock"},
	{"internal/pool/metamorph", "diskfmt internal/disk internal/pool/driver internal/pool/drivertest"},
	{"internal/pool/rbddrv", "diskfmt errs internal/blkio internal/disk internal/faults internal/hostexec internal/nbd internal/pool/driver"},
	{"internal/pool/ploopdrv", "diskfmt diskfmt/parallels diskfmt/parallels/bundle errs internal/blkio internal/disk internal/pool/dirdrv internal/pool/driver internal/pool/imagelock internal/volio"},
	{"internal/pool/mounted", "errs internal/blkio internal/faults internal/pool/dirdrv internal/pool/driver"},
	{"internal/pool/fsdrv", "errs internal/blkio internal/disk internal/hostexec internal/pool/dirdrv internal/pool/driver internal/pool/mounted"},
	{"internal/pool/netfsdrv", "errs internal/blkio internal/disk internal/pool/dirdrv internal/pool/driver internal/pool/mounted"},
	{"internal/pool/all", "internal/pool/dirdrv internal/pool/driver internal/pool/fsdrv internal/pool/lvmdrv internal/pool/netfsdrv internal/pool/ploopdrv internal/pool/rbddrv"},
	{"internal/ingest", "api diskfmt diskfmt/iso/inspect diskfmt/luks/inspect diskfmt/ova diskfmt/parallels/bundle diskfmt/parallels/inspect diskfmt/qcow2/inspect diskfmt/strict diskfmt/unpack diskfmt/vdi/inspect diskfmt/vhd/inspect diskfmt/vhdx/inspect diskfmt/vmdk/inspect errs internal/blkio internal/faults internal/hostexec internal/sniff"},

	{"internal/pool", "diskfmt diskfmt/qcow2 errs internal/blkio internal/disk internal/plan internal/pool/driver internal/volio"},
	{"internal/engine", "api diskfmt diskfmt/strict diskfmt/unpack errs internal/blkio internal/disk internal/fetch internal/generate internal/ingest internal/journal internal/plan internal/pool internal/pool/driver internal/signature internal/store internal/volio"},
	{"internal/httpapi", "api errs internal/engine internal/ingest"},
	{"internal/daemon", "api diskfmt errs internal/config internal/engine internal/exit internal/faults internal/fetch internal/hostexec internal/httpapi internal/ingest internal/pool/all internal/store internal/store/postgres internal/store/sqlite"},
	{"internal/cli", "api client diskfmt errs internal/disk internal/exit"},

	{"internal/cli/man", "api internal/cli"},
	{"cmd/tarn", "internal/cli"},
	{"cmd/tarnd", "internal/daemon internal/ingest"},
}

// only lists imports from outside the project that belong to some packages
// alone. Direct imports are what is held.
var only = map[string][]string{
	"os/exec":      {"internal/hostexec"},
	"database/sql": {"internal/store", "internal/store/sqlite", "internal/store/postgres"},
}

// pure packages read and write through io.ReaderAt and io.WriterAt; they can
// open nothing.
var pureBans = []string{"os", "net", "os/exec", "path/filepath", "syscall", "golang.org/x/sys/unix"}

// source is one parsed Go file that is not a test.
type source struct {
	pkg  string // path below the module
	file string
	fset *token.FileSet
	ast  *ast.File
}

// sources parses every Go file of the project outside of test support.
func sources(t *testing.T) []source {
	t.Helper()
	root := filepath.Join("..", "..")
	var out []source
	err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(root, p)
		if d.IsDir() {
			if rel == "test" || rel == "testdata" || strings.HasPrefix(d.Name(), ".") && rel != "." || d.Name() == "testdata" {
				return filepath.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(p, ".go") || strings.HasSuffix(p, "_test.go") {
			return nil
		}
		fset := token.NewFileSet()
		f, err := parser.ParseFile(fset, p, nil, parser.ParseComments)
		if err != nil {
			return err
		}
		out = append(out, source{filepath.ToSlash(filepath.Dir(rel)), rel, fset, f})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(out) < 50 {
		t.Fatalf("only %d files were found below %s", len(out), root)
	}
	return out
}

func (s source) imports() []string {
	var out []string
	for _, i := range s.ast.Imports {
		p, _ := strconv.Unquote(i.Path.Value) // the parser made it
		out = append(out, p)
	}
	return out
}

func TestImports(t *testing.T) {
	level := map[string]int{}
	allowed := map[string][]string{}
	for i, l := range may {
		level[l.pkg] = i
		allowed[l.pkg] = strings.Fields(l.imports)
		for _, imp := range allowed[l.pkg] {
			if at, ok := level[imp]; !ok || at >= i {
				t.Errorf("the line of %s allows %s, which is not below it", l.pkg, imp)
			}
		}
	}
	used := map[string]map[string]bool{}
	for _, s := range sources(t) {
		if _, ok := level[s.pkg]; !ok {
			t.Errorf("%s: package %s has no line in the list", s.file, s.pkg)
			continue
		}
		if used[s.pkg] == nil {
			used[s.pkg] = map[string]bool{}
		}
		for _, imp := range s.imports() {
			if below, ok := strings.CutPrefix(imp, module+"/"); ok {
				used[s.pkg][below] = true
				if !slices.Contains(allowed[s.pkg], below) {
					t.Errorf("%s imports %s, which its line does not allow", s.file, below)
				}
			}
			if users, ok := only[imp]; ok && !slices.Contains(users, s.pkg) {
				t.Errorf("%s imports %s; only %v may", s.file, imp, users)
			}
			if strings.HasPrefix(s.pkg, "diskfmt") && slices.Contains(pureBans, imp) {
				t.Errorf("%s imports %s; a format can open nothing", s.file, imp)
			}
		}
	}
	for _, l := range may {
		for _, imp := range allowed[l.pkg] {
			if !used[l.pkg][imp] {
				t.Errorf("the line of %s allows %s, which it does not use", l.pkg, imp)
			}
		}
	}
}

// TestNames keeps packages from having names that say nothing, and asks each
// for a comment that says what it is and what it refuses.
func TestNames(t *testing.T) {
	documented := map[string]string{}
	for _, s := range sources(t) {
		name := path.Base(s.pkg)
		if slices.Contains([]string{"util", "utils", "common", "helper", "helpers", "manager", "misc", "base", "types"}, name) {
			t.Errorf("package %s has a name that says nothing", s.pkg)
		}
		documented[s.pkg] += s.ast.Doc.Text()
	}
	for pkg, doc := range documented {
		want := "Package " + path.Base(pkg) + " "
		if strings.HasPrefix(pkg, "cmd/") {
			want = "Command " + path.Base(pkg) + " "
		}
		if !strings.HasPrefix(doc, want) {
			t.Errorf("the comment of package %s does not begin with %q: %q", pkg, want, strings.SplitN(doc, "\n", 2)[0])
		}
		if pkg != "internal/pool/all" && !strings.HasPrefix(pkg, "cmd/") && !strings.Contains(doc, "refuse") && !strings.Contains(doc, "never") {
			t.Errorf("the comment of package %s does not say what it refuses to do", pkg)
		}
	}
}

// TestUses holds rules about single identifiers: who may start processes by
// other ways than os/exec, build a Recorded, and make a context from nothing.
func TestUses(t *testing.T) {
	for _, s := range sources(t) {
		ast.Inspect(s.ast, func(n ast.Node) bool {
			at := func() string { return s.fset.Position(n.Pos()).String() }
			switch x := n.(type) {
			case *ast.SelectorExpr:
				switch name := selector(x); {
				case (name == "os.StartProcess" || name == "syscall.ForkExec" || name == "syscall.Exec" || name == "unix.Exec") && s.pkg != "internal/hostexec":
					t.Errorf("%s uses %s; only internal/hostexec starts processes", at(), name)
				case name == "context.Background" && !strings.HasPrefix(s.pkg, "cmd/") && !backgroundAllowed[s.pkg]:
					t.Errorf("%s uses context.Background; pass the caller's context", at())
				case name == "context.TODO":
					t.Errorf("%s uses context.TODO", at())
				}
			case *ast.CompositeLit:
				if sel, ok := x.Type.(*ast.SelectorExpr); ok && selector(sel) == "diskfmt.Recorded" && len(x.Elts) > 0 &&
					s.pkg != "internal/disk" && s.pkg != "diskfmt/diskfmttest" {
					t.Errorf("%s builds a diskfmt.Recorded; only package disk does, from a record", at())
				}
			}
			return true
		})
	}
}

// backgroundAllowed names the packages with detached work of their own.
var backgroundAllowed = map[string]bool{
	"internal/journal": true, // operations outlive the request that made them
	"internal/daemon":  true, // main's context
	"internal/cli":     true, // main's context
	"internal/ingest":  true, // the worker's main
	"internal/store":   true, // closing
	"internal/httpapi": true, // shutting down
}

func selector(x *ast.SelectorExpr) string {
	if id, ok := x.X.(*ast.Ident); ok {
		return id.Name + "." + x.Sel.Name
	}
	return ""
}

// TestSizes keeps files and functions readable.
func TestSizes(t *testing.T) {
	const maxFile, maxFunc = 1000, 120
	for _, s := range sources(t) {
		text, err := os.ReadFile(filepath.Join("..", "..", s.file))
		if err != nil {
			t.Fatal(err)
		}
		if n := strings.Count(string(text), "\n"); n > maxFile {
			t.Errorf("%s has %d lines, more than %d", s.file, n, maxFile)
		}
		for _, d := range s.ast.Decls {
			if f, ok := d.(*ast.FuncDecl); ok {
				if n := s.fset.Position(f.End()).Line - s.fset.Position(f.Pos()).Line; n > maxFunc {
					t.Errorf("%s: %s has %d lines, more than %d", s.file, f.Name.Name, n, maxFunc)
				}
			}
		}
	}
}
