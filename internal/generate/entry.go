package generate

import (
	"cmp"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// The bounds of a config drive's input.
const (
	MaxContent = 64 << 20 // bytes of all files together
	MaxEntries = 4096     // files and directories, implied ones included
	MaxName    = 253      // bytes of a path's component: Linux cuts longer Rock Ridge names
	MaxDepth   = 8        // components of a path (ECMA-119, 6.8.2.1: levels with the root)
)

// Entry is a regular file or directory of a config drive.
type Entry struct {
	Path    string // relative, with slashes, and clean
	Mode    uint32 // permission bits; 0 is 0444 for a file and 0555 for a directory
	Dir     bool
	Content []byte // of a file
}

// node is an entry in its place in the tree.
type node struct {
	name    string
	mode    uint32
	dir     bool
	content []byte
	parent  *node
	kids    []*node // by name
	views   [2]placed
	sector  uint32 // of a file's content
}

// newTree checks entries and returns their root. Missing parents are made;
// duplicates, files with children and everything beyond the bounds are
// errs.Invalid.
func newTree(entries []Entry) (*node, error) {
	root := &node{dir: true, mode: 0o555}
	root.parent = root
	known := map[string]*node{"": root}
	given := map[string]bool{}
	var total int
	for _, e := range entries {
		if err := e.check(); err != nil {
			return nil, err
		}
		if given[e.Path] {
			return nil, invalid("the path %q is given twice", e.Path)
		}
		given[e.Path] = true
		if total += len(e.Content); total > MaxContent {
			return nil, invalid("the files have more than %d bytes together", MaxContent)
		}
		if err := e.insert(known); err != nil {
			return nil, err
		}
		if len(known)-1 > MaxEntries {
			return nil, invalid("there are more than %d files and directories", MaxEntries)
		}
	}
	for _, n := range known {
		slices.SortFunc(n.kids, func(a, b *node) int { return cmp.Compare(a.name, b.name) })
	}
	return root, nil
}

// insert adds e and its missing parents to the tree whose nodes known holds
// by path.
func (e Entry) insert(known map[string]*node) error {
	at := known[""]
	for i := 0; i < len(e.Path); i++ {
		end := strings.IndexByte(e.Path[i:], '/')
		if end < 0 {
			end = len(e.Path)
		} else {
			end += i
		}
		path, name := e.Path[:end], e.Path[i:end]
		n := known[path]
		if n == nil {
			n = &node{name: name, dir: true, mode: 0o555, parent: at}
			known[path] = n
			at.kids = append(at.kids, n)
			if end == len(e.Path) {
				n.dir, n.content = e.Dir, e.Content
				if !e.Dir {
					n.mode = 0o444
				}
			}
		}
		last := end == len(e.Path)
		if n.dir != (e.Dir || !last) {
			return invalid("the path %q is both a file and a directory", path)
		}
		if last && e.Mode != 0 {
			n.mode = e.Mode
		}
		at, i = n, end
	}
	return nil
}

// check refuses a path that could leave the drive or that no guest could
// read, and what is neither a file nor a directory.
func (e Entry) check() error {
	if e.Dir && len(e.Content) > 0 {
		return invalid("the directory %q has content", e.Path)
	}
	if e.Mode > 0o777 {
		return invalid("the mode %#o of %q has more than permission bits", e.Mode, e.Path)
	}
	depth := strings.Count(e.Path, "/") + 1
	if e.Dir {
		depth++ // its children
	}
	if depth > MaxDepth {
		return invalid("the path %q is deeper than %d", e.Path, MaxDepth)
	}
	for name := range strings.SplitSeq(e.Path, "/") {
		switch {
		case name == "" || name == "." || name == "..":
			return invalid("the path %q is not a clean relative path", e.Path)
		case len(name) > MaxName:
			return invalid("the path %q has a component of more than %d bytes", e.Path, MaxName)
		case !utf8.ValidString(name) || strings.ContainsFunc(name, unicode.IsControl):
			return invalid("the path %q is not printable UTF-8", e.Path)
		}
	}
	return nil
}
