package mounted

import (
	"testing"

	"golang.org/x/sys/unix"
)

func TestParsePoint(t *testing.T) {
	for line, want := range map[string]Point{
		"36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue\n": {unix.Mkdev(98, 0), "/mnt2", "/dev/root"},
		`40 36 0:52 / /srv/a\040b\134c rw - nfs4 [fe80::1]:/e\011x rw`:                     {unix.Mkdev(0, 52), `/srv/a b\c`, "[fe80::1]:/e\tx"},
		`41 36 0:53 / /srv/\9 rw shared:1 master:2 - tmpfs tmpfs rw`:                       {unix.Mkdev(0, 53), `/srv/\9`, "tmpfs"},
	} {
		if got, err := parsePoint(line); got != want || err != nil {
			t.Errorf("parsePoint(%q) = %+v, %v; want %+v", line, got, err, want)
		}
	}
	for _, line := range []string{"", "36 35 98:0 /mnt1 /mnt2 rw", "36 35 98 /mnt1 /mnt2 rw - ext3 /dev/root rw", "36 35 98:0 / /mnt2 rw - ext3"} {
		if got, err := parsePoint(line); err == nil {
			t.Errorf("parsePoint(%q) = %+v, want an error", line, got)
		}
	}
}
