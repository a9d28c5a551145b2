package ingest

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"runtime"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tarn-storage/tarn/diskfmt/strict"
	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/faults"
	"github.com/tarn-storage/tarn/internal/hostexec"
)

const op = "image.import"

// startTime is how long a worker may take to confine itself.
const startTime = 10 * time.Second

// Session is one image in front of the gate: judged once, converted at most
// once. It is not safe for concurrent use, except Close.
type Session struct {
	cfg     Config
	claim   Claim
	subject string
	stream  bool
	conn    *net.UnixConn
	proc    *hostexec.Process
	header  Header
	layers  Layers
	pipe    *os.File // the write end that feeds a Stream
	lease   *lease   // on a file that is read more than once, where there is one to be had

	total *time.Timer // ends a worker that takes too long in all

	mu     sync.Mutex
	reason error // why the worker was stopped
}

// Open starts a worker and has it judge the source's header and tables. The
// caller must Close the session, whose worker does not outlive ctx either. No
// byte of the source is read before the worker is confined.
func Open(ctx context.Context, cfg Config, src Source, claim Claim) (*Session, error) {
	s := &Session{cfg: cfg.withDefaults(), claim: claim, subject: src.Name}
	if err := s.open(ctx, src); err != nil {
		s.Close()
		return nil, s.wrap(err)
	}
	return s, nil
}

func (s *Session) open(ctx context.Context, src Source) error {
	if err := s.claim.check(); err != nil {
		return err
	}
	j := judge{Format: s.claim.Format, Compression: s.claim.Compression, Size: src.Size, MaxVirtual: s.claim.MaxVirtualSize, MaxData: s.claim.MaxUnannounced, Threads: s.cfg.Threads, Adopt: s.claim.Adopt}
	if j.Threads <= 0 {
		j.Threads = runtime.GOMAXPROCS(0)
	}
	input, src, err := s.input(src, &j)
	if err != nil {
		return err
	}
	s.stream = j.Stream
	err = s.start(ctx, input)
	if src.File == nil {
		input.Close()
	}
	if err != nil {
		return err
	}
	s.total = time.AfterFunc(s.cfg.Total, func() {
		s.stop(errs.New(errs.Unavailable, "", "", "not done after %v: the worker was stopped", s.cfg.Total))
	})
	if src.File == nil {
		go s.feed(src.Stream)
	}
	if err := s.claimed(j, src.Description); err != nil {
		return err
	}
	r, err := s.answer(s.cfg.Idle, func(advance) error { return s.lease.holds() })
	if err = s.unwritten(err); err != nil {
		return err
	}
	if r.Header == nil {
		return s.nonsense("it gave no verdict")
	}
	return s.checkHeader(*r.Header, j)
}

// claimed sends the claim and, where there is one, the description.
func (s *Session) claimed(j judge, description []byte) error {
	if description == nil {
		return s.ask(request{Judge: &j}, nil)
	}
	fd, err := unix.MemfdCreate("description", unix.MFD_CLOEXEC)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), "description")
	defer f.Close()
	if _, err := f.Write(description); err != nil {
		return err
	}
	j.Described = true
	return s.ask(request{Judge: &j}, []*os.File{f})
}

// input returns the worker's source descriptor, and the source as it is to be
// read, and completes j. For a Stream the descriptor is a pipe that feed fills.
func (s *Session) input(src Source, j *judge) (*os.File, Source, error) {
	if src.File == nil {
		r, err := s.piped(j)
		return r, src, err
	}
	fi, err := src.File.Stat()
	if err != nil {
		return nil, src, err
	}
	switch mode := fi.Mode(); {
	case mode.IsRegular():
		return s.regular(src, fi.Size(), j)
	case src.Name == Stdin && mode&(os.ModeNamedPipe|os.ModeSocket) != 0:
		j.Stream = true
		if j.Size == 0 {
			j.Size = -1
		}
	default:
		return nil, src, strict.Refuse(strict.NotRegular, "it is %s, not a regular file", fileType(mode)).
			WithHint("name a file, or - to read standard input from a pipe")
	}
	return src.File, src, nil
}

// piped returns the end of a pipe that a worker reads a stream from.
func (s *Session) piped(j *judge) (*os.File, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	// A larger pipe saves switches between the processes; the system's limit
	// may forbid it.
	if c, err := w.SyscallConn(); err == nil {
		_ = c.Control(func(fd uintptr) { _, _ = unix.FcntlInt(fd, unix.F_SETPIPE_SZ, 1<<20) })
	}
	s.pipe, j.Stream = w, true
	return r, nil
}

// regular sees to it that what is judged of a file, what is digested and what is
// converted are the same bytes. Four things might happen:
//  1. the file's bytes are read once: nothing is to be done;
//  2. a lease is held on it, up to the session's end;
//  3. none is to be had and somebody promised what the bytes are: they are read
//     once, as a stream of which a copy is kept;
//  4. none is to be had and nobody promised anything: only the file's size and
//     times show a change.
func (s *Session) regular(src Source, size int64, j *judge) (*os.File, Source, error) {
	j.Size = size
	if s.claim.readOnce() {
		j.Held = true
		return src.File, src, nil
	}
	var err error
	if s.lease, err = takeLease(src.File); err != nil {
		return nil, src, err
	}
	if j.Held = s.lease != nil; j.Held || !s.claim.promised() {
		return src.File, src, nil
	}
	src.Stream, src.File, src.Size = io.NewSectionReader(src.File, 0, size), nil, size
	r, err := s.piped(j)
	return r, src, err
}

func fileType(mode os.FileMode) string {
	switch {
	case mode.IsDir():
		return "a directory"
	case mode&os.ModeNamedPipe != 0:
		return "a FIFO"
	case mode&os.ModeSocket != 0:
		return "a socket"
	case mode&os.ModeDevice != 0:
		return "a device"
	}
	return "a special file"
}

// start starts the worker and waits until it is confined.
func (s *Session) start(ctx context.Context, input *os.File) error {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	theirs := os.NewFile(uintptr(fds[1]), "control")
	defer theirs.Close()
	ours := os.NewFile(uintptr(fds[0]), "control")
	conn, err := net.FileConn(ours)
	ours.Close()
	if err != nil {
		return err
	}
	s.conn = conn.(*net.UnixConn)
	s.proc, err = hostexec.StartSelf(ctx, hostexec.Self{
		Mode: "worker", Files: []*os.File{input, theirs}, User: s.cfg.User, Isolate: true,
	})
	if err != nil {
		return err
	}
	theirs.Close()
	r, err := s.answer(startTime, nil)
	if err != nil {
		return err
	}
	if r.Layers == nil || !r.Layers.Seccomp {
		return errs.New(errs.Unavailable, "", "", "the worker has no system call filter, and nothing is imported without one")
	}
	s.layers = *r.Layers
	s.layers.Namespaces = s.proc.Isolated()
	return nil
}

// feed copies a stream into the worker's pipe. When the stream fails the worker
// is stopped before the pipe's end could pass for the stream's.
func (s *Session) feed(r io.Reader) {
	_, err := io.CopyBuffer(struct{ io.Writer }{s.pipe}, struct{ io.Reader }{r}, make([]byte, 256<<10))
	if err != nil && !errors.Is(err, unix.EPIPE) && !errors.Is(err, os.ErrClosed) {
		s.stop(errs.New(errs.Cancelled, "", "", "the stream broke off: %w", err))
		_, _ = s.proc.Wait()
	}
	s.pipe.Close()
}

// Header returns the verdict on the header.
func (s *Session) Header() Header { return s.header }

// Convert writes the image's content into dst, which must read as zeroes and,
// when the virtual size is known, be that long; with a nil dst it judges and
// digests all the same. A dst of unknown size grows. spool is called when the
// header says MaxSpool and returns an empty file, which the caller removes.
// progress is called from this goroutine. Nothing is synced. When Convert
// fails dst holds anything.
func (s *Session) Convert(ctx context.Context, dst *os.File, spool func() (*os.File, error), progress func(done, total int64)) (Result, error) {
	r, err := s.convert(ctx, dst, spool, progress)
	if want := strings.ToLower(s.claim.SHA256); err == nil && want != "" && want != r.SourceSHA256 {
		err = strict.Refuse(strict.Checksum, "the bytes have the SHA-256 %s, not %s", r.SourceSHA256, want).
			WithHint("fetch the image again and compare with its publisher's checksum")
	}
	if err != nil {
		return Result{}, s.wrap(err)
	}
	return r, nil
}

func (s *Session) convert(ctx context.Context, dst *os.File, spool func() (*os.File, error), progress func(done, total int64)) (Result, error) {
	files, guards, err := s.outputs(dst, spool)
	if err != nil {
		return Result{}, err
	}
	defer context.AfterFunc(ctx, func() { s.stop(ctx.Err()) })()
	var r reply
	err = faults.Do(faults.Write, "convert "+s.subject, func() error {
		if err := s.ask(request{Convert: &convert{Dry: dst == nil, Spool: s.header.MaxSpool != 0}}, files); err != nil {
			return err
		}
		r, err = s.answer(s.cfg.Idle, func(p advance) error {
			if progress != nil {
				progress(p.Done, p.Total)
			}
			if err := s.lease.holds(); err != nil {
				return err
			}
			return checkGuards(guards)
		})
		return errors.Join(err, checkGuards(guards))
	})
	err = s.unwritten(err)
	switch {
	case err != nil:
		return Result{}, err
	case r.Result == nil:
		return Result{}, s.nonsense("it gave no result")
	}
	return *r.Result, s.checkResult(*r.Result)
}

// unwritten returns err, unless the file was opened for writing while it was
// read. What else seems to be wrong with its bytes says nothing then.
func (s *Session) unwritten(err error) error {
	if err != nil && strict.ClassOf(err) == "" {
		return err
	}
	if written := s.lease.holds(); written != nil {
		return written
	}
	return err
}

// outputs returns the files that the worker writes, and what watches them.
func (s *Session) outputs(dst *os.File, spool func() (*os.File, error)) (files []*os.File, guards []guard, err error) {
	if dst != nil {
		size := s.header.VirtualSize
		longest := size
		if size < 0 { // its last byte may lie anywhere
			size, longest = 0, s.claim.MaxVirtualSize
		}
		g, err := guardOf(dst, size, longest, s.header.MaxData)
		if err != nil {
			return nil, nil, err
		}
		files, guards = append(files, dst), append(guards, g)
	}
	if s.header.MaxSpool != 0 {
		f, err := spool()
		if err != nil {
			return nil, nil, err
		}
		g, err := guardOf(f, 0, s.header.MaxSpool, s.header.MaxSpool)
		if err != nil {
			return nil, nil, err
		}
		files, guards = append(files, f), append(guards, g)
	}
	return files, guards, nil
}

// ask sends a request.
func (s *Session) ask(q request, files []*os.File) error {
	b, err := json.Marshal(q)
	if err != nil {
		return err
	}
	var oob []byte
	if len(files) > 0 {
		fds := make([]int, len(files))
		for i, f := range files {
			fds[i] = int(f.Fd())
		}
		oob = unix.UnixRights(fds...)
	}
	_, _, err = s.conn.WriteMsgUnix(b, oob, nil)
	runtime.KeepAlive(files)
	if err != nil {
		return s.ended(err)
	}
	return nil
}

// answer waits for a reply that is not progress. A worker that says nothing for
// idle is stopped.
func (s *Session) answer(idle time.Duration, report func(advance) error) (reply, error) {
	watchdog := time.AfterFunc(idle, func() {
		s.stop(errs.New(errs.Unavailable, "", "", "no progress for %v: the worker was stopped", idle))
	})
	defer watchdog.Stop()
	buf := make([]byte, maxMessage)
	for {
		n, _, flags, _, err := s.conn.ReadMsgUnix(buf, nil)
		if err != nil {
			return reply{}, s.ended(err)
		}
		var r reply
		if flags&unix.MSG_TRUNC != 0 || json.Unmarshal(buf[:n], &r) != nil {
			return reply{}, s.nonsense("its message cannot be read")
		}
		switch {
		case r.Failure != nil:
			return reply{}, r.Failure.error()
		case r.Progress == nil:
			return r, nil
		case report == nil:
			return reply{}, s.nonsense("it reports progress of nothing")
		}
		watchdog.Reset(idle)
		if err := report(*r.Progress); err != nil {
			return reply{}, err
		}
	}
}

// stop kills the worker for the first reason given.
func (s *Session) stop(reason error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.reason == nil {
		s.reason = reason
	}
	if s.proc != nil {
		_ = s.proc.Kill()
	}
}

// ended says why the worker's socket is closed.
func (s *Session) ended(cause error) error {
	if s.proc == nil {
		return cause
	}
	_ = s.proc.Kill() // one that closed its socket is of no use
	_, err := s.proc.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.reason != nil:
		return s.reason
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return err
	}
	how := "it closed its socket"
	var exit *hostexec.Exit
	if errors.As(err, &exit) { // what it wrote to standard error stays in the cause
		how = (&hostexec.Exit{Code: exit.Code, Signal: exit.Signal}).Error()
	}
	e := errs.New(errs.Unavailable, "", "", "the confined worker ended before it was done: %s", how).
		WithHint("try again; if it happens with this image only, the image exhausts the worker's limits")
	e.Err = errors.Join(err, cause)
	return e
}

func (s *Session) nonsense(what string) error {
	return errs.New(errs.Unavailable, "", "", "the confined worker cannot be trusted: %s", what)
}

func (s *Session) checkHeader(h Header, j judge) error {
	switch {
	case string(h.Format) != j.Format,
		h.VirtualSize > s.claim.MaxVirtualSize,
		(h.VirtualSize < 0 || h.MaxSpool > 0) && !j.Stream && j.Compression == "",
		h.MaxData < 0, h.MaxSpool < 0,
		len(h.Features) > maxFeatures,
		!s.claim.Adopt && (h.Backing != nil || h.ClusterSize != 0),
		h.ClusterSize < 0 || h.Backing != nil && len(h.Backing.Name)+len(h.Backing.Format) > maxBacking:
		return s.nonsense("its verdict contradicts the claim")
	}
	for i, f := range h.Features {
		h.Features[i] = clean(f, maxFeatureLength)
	}
	s.header = h
	return nil
}

func (s *Session) checkResult(r Result) error {
	sum, err := hex.DecodeString(r.SourceSHA256)
	digest, ok := strings.CutPrefix(r.Content, "b3-4m:")
	content, err2 := hex.DecodeString(digest)
	switch {
	case err != nil || len(sum) != 32 || !ok || err2 != nil || len(content) != 32,
		s.header.VirtualSize >= 0 && r.VirtualSize != s.header.VirtualSize,
		r.VirtualSize < 0 || r.VirtualSize > s.claim.MaxVirtualSize,
		r.Written < 0 || r.Written > s.header.MaxData,
		r.Extents < 0 || r.Extents > r.Written:
		return s.nonsense("its result contradicts its verdict")
	}
	return nil
}

// Close stops the worker and waits for its end. Closing again is not an error.
func (s *Session) Close() error {
	if s.total != nil {
		s.total.Stop()
	}
	s.stop(errs.New(errs.Cancelled, "", "", "the session was closed"))
	if s.pipe != nil {
		s.pipe.Close()
	}
	if s.proc != nil {
		_, _ = s.proc.Wait()
	}
	if s.conn != nil {
		s.conn.Close()
	}
	s.lease.end()
	return nil
}

// wrap names the operation and the source in an error.
func (s *Session) wrap(err error) error { return errs.Wrap(err, op, s.subject) }

// Confinement starts a worker, has it judge a disk of zeroes and returns which
// layers it had. An error means that nothing can be imported on this host.
func Confinement(ctx context.Context, cfg Config) (Layers, error) {
	fd, err := unix.MemfdCreate("probe", unix.MFD_CLOEXEC)
	if err != nil {
		return Layers{}, errs.Wrap(err, "worker.check", "")
	}
	f := os.NewFile(uintptr(fd), "probe")
	defer f.Close()
	if err := f.Truncate(1 << 20); err != nil {
		return Layers{}, errs.Wrap(err, "worker.check", "")
	}
	s, err := Open(ctx, cfg, Source{File: f}, Claim{Format: "raw"})
	if err != nil {
		return Layers{}, err
	}
	defer s.Close()
	_, err = s.Convert(ctx, nil, nil, nil)
	return s.layers, err
}
