package cli

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/cobra"

	"github.com/tarn-storage/tarn/api"
	"github.com/tarn-storage/tarn/errs"
)

func TestSpecs(t *testing.T) {
	const gib = 1 << 30
	for _, row := range []struct {
		role, spec string
		want       api.DiskSpec
	}{
		{"root", "debian12:20G", api.DiskSpec{Image: "debian12", Size: 20 * gib}},
		{"root", "debian12", api.DiskSpec{Image: "debian12"}},
		{"root", "40GiB", api.DiskSpec{Size: 40 * gib}},
		{"root", "1.5G", api.DiskSpec{Size: 3 * gib / 2}},
		{"root", "4096", api.DiskSpec{Size: 4096}},
		{"root", "12-bookworm:1T,bus=scsi", api.DiskSpec{Image: "12-bookworm", Size: 1 << 40, Bus: "scsi"}},
		{"ephemeral", "10G,fs=xfs,label=scratch", api.DiskSpec{Size: 10 * gib, FS: "xfs", Label: "scratch"}},
		{"swap", "2G,pool=slow", api.DiskSpec{Size: 2 * gib, Pool: "slow"}},
		{"data", "100G,pool=fast,disk-format=qcow2,discard=ignore,cache=writeback,prealloc=full",
			api.DiskSpec{Size: 100 * gib, Pool: "fast", Format: "qcow2", Discard: "ignore", Cache: "writeback", Prealloc: "full"}},
		{"cdrom", "installer,bus=sata", api.DiskSpec{Image: "installer", Bus: "sata"}},
	} {
		row.want.Role = row.role
		got, err := parseSpec(row.role, row.spec)
		if diff := cmp.Diff(row.want, got); diff != "" || err != nil {
			t.Errorf("--%s %s: %v (-want +got):\n%s", row.role, row.spec, err, diff)
		}
	}
}

func TestSpecRefusals(t *testing.T) {
	for _, row := range []struct{ role, spec, want string }{
		{"root", "", "--root is empty"},
		{"root", "20GB", "ambiguous"},
		{"root", "20 G", "not a size"},
		{"root", ":20G", "no image stands before the colon"},
		{"root", "debian:", "not a size"},
		{"root", "debian:20GB", "ambiguous"},
		{"root", "debian:20G:x", "not a size"},
		{"root", "0", "cannot be made"},
		{"root", "65T", "over the limit of 64 TiB"},
		{"root", "99999999T", "larger than tarn can hold"},
		{"root", "debian:0", "cannot be made"},
		{"root", "-5G", "not a size"},
		{"root", "20G,", `"" is not an option`},
		{"root", "20G,colour=red", `"colour" is not an option`},
		{"root", "20G,pool", "the option pool needs a value"},
		{"root", "20G,pool=", "the option pool needs a value"},
		{"root", "20G,bus=virtio,bus=scsi", "given twice"},
		{"root", "20G,bus=ide", "bus=ide is not possible"},
		{"root", "20G,fs=ext4", "only ephemeral and data disks"},
		{"data", "debian12", "only --root and --cdrom take an image"},
		{"swap", "debian12:1G", "only --root and --cdrom take an image"},
		{"data", "1G,label=x", "label needs fs"},
		{"cdrom", "iso:1G", "as large as its image"},
		{"ephemeral", "1G,fs=ntfs", "fs=ntfs is not possible"},
	} {
		_, err := parseSpec(row.role, row.spec)
		var e *errs.Error
		if !errors.As(err, &e) || e.Kind != errs.Invalid || !strings.Contains(e.Message+" "+e.Hint, row.want) {
			t.Errorf("--%s %q: got %v, want errs.Invalid with %q", row.role, row.spec, err, row.want)
		}
	}
}

func TestResizes(t *testing.T) {
	for _, row := range []struct {
		text     string
		size, by int64
		ok       bool
	}{
		{"20G", 20 << 30, 0, true}, {"+10G", 0, 10 << 30, true}, {"+512", 0, 512, true},
		{"+0", 0, 0, false}, {"++1G", 0, 0, false}, {"+-1G", 0, 0, false}, {"+", 0, 0, false}, {"0", 0, 0, false}, {"1GB", 0, 0, false},
	} {
		size, by, err := parseResize(row.text)
		if (err == nil) != row.ok || row.ok && (size != row.size || by != row.by) {
			t.Errorf("%q: got %d, %d, %v, want %d, %d, ok %v", row.text, size, by, err, row.size, row.by, row.ok)
		}
	}
}

func TestReserves(t *testing.T) {
	for text, want := range map[string]string{"5%": "5%", "0%": "0%", "2.5%": "2.5%", "10G": "10737418240", "0": "0",
		"100%": "", "-1%": "", "%": "", "NaN%": "", "10GB": "", "much": ""} {
		if got, err := parseReserve(text); got != want || (err == nil) != (want != "") {
			t.Errorf("%q: got %q, %v, want %q", text, got, err, want)
		}
	}
}

func TestAges(t *testing.T) {
	for text, want := range map[string]string{"": "", "30d": "720h", "12h": "12h", "1h30m": "1h30m"} {
		if got, err := parseAge(text); got != want || err != nil {
			t.Errorf("%q: got %q, %v, want %q", text, got, err, want)
		}
	}
	for _, text := range []string{"d", "-1d", "-1h", "soon", "99999d", "1.5d"} {
		if got, err := parseAge(text); !errors.Is(err, errs.Invalid) {
			t.Errorf("%q: got %q, %v, want errs.Invalid", text, got, err)
		}
	}
}

func TestShellQuote(t *testing.T) {
	for word, want := range map[string]string{
		"-device": "-device", "virtio-blk-pci,drive=d": "virtio-blk-pci,drive=d", "": "''", "a b": "'a b'", `{"a":1}`: `'{"a":1}'`, "it's": `'it'\''s'`, "$x": "'$x'",
	} {
		if got := shellQuote(word); got != want {
			t.Errorf("%q: got %s, want %s", word, got, want)
		}
	}
}

// TestEveryCommandExplainsItself walks the whole tree.
func TestEveryCommandExplainsItself(t *testing.T) {
	var walk func(*cobra.Command)
	commands := 0
	walk = func(c *cobra.Command) {
		commands++
		if c.Short == "" || len(c.Long) <= len(c.Short) || c.Example == "" {
			t.Errorf("%s: a command needs a summary, a description and examples", c.CommandPath())
		}
		for line := range strings.SplitSeq(c.Long+"\n"+c.Example, "\n") {
			if len(line) > 160 {
				t.Errorf("%s: the line is %d characters long: %s", c.CommandPath(), len(line), line)
			}
		}
		for _, sub := range c.Commands() {
			walk(sub)
		}
	}
	walk((&app{}).root())
	if commands < 40 {
		t.Errorf("the tree has only %d commands", commands)
	}
}

// TestExamplesParse runs the grammar over every example of every command.
func TestExamplesParse(t *testing.T) {
	var walk func(*cobra.Command)
	walk = func(c *cobra.Command) {
		for line := range strings.SplitSeq(c.Example, "\n") {
			for _, args := range tarnCalls(line) {
				root := (&app{}).root()
				cmd, rest, err := root.Find(args)
				if err != nil {
					t.Errorf("%s: %q: %v", c.CommandPath(), line, err)
					continue
				}
				if err := cmd.ParseFlags(rest); err != nil {
					t.Errorf("%s: %q: %v", c.CommandPath(), line, err)
				} else if err := cmd.ValidateArgs(cmd.Flags().Args()); err != nil {
					t.Errorf("%s: %q: %v", c.CommandPath(), line, err)
				} else if err := cmd.ValidateRequiredFlags(); err != nil {
					t.Errorf("%s: %q: %v", c.CommandPath(), line, err)
				}
			}
		}
		for _, sub := range c.Commands() {
			walk(sub)
		}
	}
	walk((&app{}).root())
}

// tarnCalls returns the arguments of each call of tarn in a shell line. A
// command substitution stands for one word, and its own call counts too.
func tarnCalls(line string) [][]string {
	var calls [][]string
	for {
		before, rest, found := strings.Cut(line, "$(")
		inner, after, closed := strings.Cut(rest, ")")
		if !found || !closed {
			break
		}
		calls = append(calls, tarnCalls(inner)...)
		line = before + "WORD" + after
	}
	for part := range strings.SplitSeq(line, "|") {
		part, _, _ = strings.Cut(part, ">")
		part, _, _ = strings.Cut(part, " < ")
		if words := strings.Fields(part); len(words) > 0 && words[0] == "tarn" {
			calls = append(calls, words[1:])
		}
	}
	return calls
}
