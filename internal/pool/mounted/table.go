package mounted

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Point is where something is mounted: one line of /proc/self/mountinfo.
type Point struct {
	Device uint64 // of the files in it; btrfs has one that is no device's
	Path   string
	Source string
}

// On reports whether the file system of block device dev is mounted there.
func (p Point) On(dev uint64) bool {
	if p.Device == dev {
		return true
	}
	var st unix.Stat_t
	return filepath.IsAbs(p.Source) && unix.Stat(p.Source, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFBLK && st.Rdev == dev
}

// Points lists what is mounted, in order: of those with one path the last covers
// the others.
func Points() ([]Point, error) {
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	var all []Point
	for line := range strings.Lines(string(text)) {
		p, err := parsePoint(line)
		if err != nil {
			return nil, err
		}
		all = append(all, p)
	}
	return all, nil
}

// parsePoint reads a line as proc(5) describes it: id, parent, major:minor, root,
// path, options, optional fields, a dash, type, source, options.
func parsePoint(line string) (Point, error) {
	head, tail, ok := strings.Cut(strings.TrimSpace(line), " - ")
	fields, rest := strings.Fields(head), strings.Fields(tail)
	if !ok || len(fields) < 6 || len(rest) < 2 {
		return Point{}, fmt.Errorf("mountinfo has the line %q", line)
	}
	var major, minor uint32
	if _, err := fmt.Sscanf(fields[2], "%d:%d", &major, &minor); err != nil {
		return Point{}, fmt.Errorf("mountinfo has the line %q", line)
	}
	return Point{Device: unix.Mkdev(major, minor), Path: unescape(fields[4]), Source: unescape(rest[1])}, nil
}

// unescape undoes what the kernel does to blanks and backslashes.
func unescape(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// Source returns the source of what is mounted at path, and "" where nothing is.
func Source(path string) (source string, err error) {
	all, err := Points()
	for _, p := range all {
		if p.Path == Place(path) {
			source = p.Source
		}
	}
	return source, err
}

// Place returns path as the kernel shows it.
func Place(path string) string {
	path = filepath.Clean(path)
	if parent, err := filepath.EvalSymlinks(filepath.Dir(path)); err == nil {
		path = filepath.Join(parent, filepath.Base(path))
	}
	return path
}
