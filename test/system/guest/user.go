package guest

import (
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
)

// User is whom QEMU runs as.
type User struct {
	Owner      string // USER:GROUP, for a pool's --owner
	Credential *syscall.Credential
}

// QEMUUser returns the user that Debian's libvirt gives to QEMU, or nobody
// where it is not installed.
func QEMUUser(t testing.TB) User {
	t.Helper()
	owner, group := "libvirt-qemu", "libvirt-qemu"
	u, err := user.Lookup(owner)
	if err != nil {
		owner, group = "nobody", "nogroup"
		u, err = user.Lookup(owner)
	}
	if err != nil {
		t.Fatal(err)
	}
	g, err := user.LookupGroup(group)
	if err != nil {
		t.Fatal(err)
	}
	ids, err := u.GroupIds()
	if err != nil {
		t.Fatal(err)
	}
	c := &syscall.Credential{Uid: number(t, u.Uid), Gid: number(t, g.Gid)}
	for _, id := range ids {
		c.Groups = append(c.Groups, number(t, id)) // kvm is one of them
	}
	return User{owner + ":" + group, c}
}

func number(t testing.TB, id string) uint32 {
	t.Helper()
	n, err := strconv.ParseUint(id, 10, 32)
	if err != nil {
		t.Fatal(err)
	}
	return uint32(n)
}

// LetPass lets every user go through dir, which lies in a test's temporary
// directory, and through what is above it up to there.
func LetPass(t testing.TB, dir string) {
	t.Helper()
	for top := filepath.Clean(os.TempDir()); dir != top && dir != "/"; dir = filepath.Dir(dir) {
		st, err := os.Stat(dir)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(dir, st.Mode().Perm()|0o011); err != nil {
			t.Fatal(err)
		}
	}
}
