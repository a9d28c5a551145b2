package hostexec

import (
	"context"
	"errors"
	"os"
	"syscall"

	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/faults"
)

// User is whom a process runs as, without supplementary groups.
type User struct{ UID, GID uint32 }

// Self is one start of this program's own binary. Mode is the only word of
// its command line, Files are its descriptors from 3 on, in order.
type Self struct {
	Mode    literal
	Files   []*os.File
	User    *User // nil keeps the caller's
	Isolate bool  // ask for network and IPC namespaces of its own
}

// StartSelf starts /proc/self/exe, which stays the running binary even after
// an upgrade has replaced the file. The process has /dev/null as standard
// input, the fixed environment, and is killed with its group when ctx ends or
// this process dies. When the kernel forbids new namespaces it starts without
// them, and Isolated tells. Limits are the child's own business: what it sets
// before it reads its input nobody can race. The start is one effect
// (faults.Tool).
func StartSelf(ctx context.Context, s Self) (*Process, error) {
	const op = "worker.start"
	name := string(s.Mode)
	if err := ctx.Err(); err != nil {
		return nil, errs.Wrap(err, op, name)
	}
	var p *Process
	err := faults.Do(faults.Tool, name, func() (err error) {
		p, err = s.start(ctx)
		return errs.Wrap(err, op, name)
	})
	if err != nil && p != nil { // started, but the effect was failed afterwards
		_ = p.Kill()
		_, _ = p.Wait()
	}
	if err != nil {
		return nil, err
	}
	return p, nil
}

func (s Self) start(ctx context.Context) (*Process, error) {
	attr := groupLeader()
	if s.User != nil {
		attr.Credential = &syscall.Credential{Uid: s.User.UID, Gid: s.User.GID}
	}
	sp := spec{path: "/proc/self/exe", argv: []string{"/proc/self/exe", string(s.Mode)}, files: s.Files, attr: attr}
	if s.Isolate {
		isolating := *attr
		isolating.Cloneflags = syscall.CLONE_NEWNET | syscall.CLONE_NEWIPC
		isolated := sp
		isolated.attr = &isolating
		p, err := start(ctx, isolated)
		if err == nil {
			p.isolated = true
			return p, nil
		}
		if !namespacesRefused(err) {
			return nil, err
		}
	}
	return start(ctx, sp)
}

// namespacesRefused reports whether err is one that clone(2) gives for new
// namespaces: no right (EPERM), not built in (EINVAL), their number used up
// (ENOSPC, ENOMEM).
func namespacesRefused(err error) bool {
	for _, e := range []error{syscall.EPERM, syscall.EINVAL, syscall.ENOSPC, syscall.ENOMEM} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}
