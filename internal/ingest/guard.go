package ingest

import (
	"os"

	"golang.org/x/sys/unix"

	"github.com/tarn-storage/tarn/errs"
)

// guard watches a file that a worker writes from outside: a worker that is no
// longer tarn's own code could write more than was reserved.
type guard struct {
	f      *os.File
	size   int64 // the file may not become longer
	blocks int64 // nor take more space, bytes
}

// slack is what file systems allocate beside the data: their own blocks and
// what they expect to be written soon.
const slack = 64 << 20

// guardOf watches f, which has size bytes at least, becomes no longer than
// longest and gets at most data bytes.
func guardOf(f *os.File, size, longest, data int64) (guard, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return guard{}, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return guard{}, errs.New(errs.Internal, "", "", "the output is not a regular file")
	}
	if st.Size < size {
		return guard{}, errs.New(errs.Internal, "", "", "the output has %d bytes, the image %d", st.Size, size)
	}
	return guard{f: f, size: max(st.Size, longest), blocks: st.Blocks*512 + 2*data + slack}, nil
}

func checkGuards(guards []guard) error {
	for _, g := range guards {
		var st unix.Stat_t
		if err := unix.Fstat(int(g.f.Fd()), &st); err != nil {
			return err
		}
		if st.Size > g.size || st.Blocks*512 > g.blocks {
			return errs.New(errs.Unavailable, "", "", "the confined worker cannot be trusted: it wrote more than the image has")
		}
	}
	return nil
}
