package generate

import (
	"encoding/binary"
	"fmt"
	"io"

	"github.com/google/uuid"
)

// swapPage is the page size of the swap header: that of amd64 and of the
// usual arm64 kernels. A kernel with larger pages refuses the area.
const swapPage = 4096

// swapLimits: the kernel wants more than ten pages counted in 32 bits, and
// mkswap ends the label of 16 bytes with a NUL.
var swapLimits = limits{label: 15, min: 10 * swapPage, max: swapPage << 32}

// writeSwap writes the header of a version 1 swap area over size bytes
// (Linux, include/linux/swap.h, union swap_header). Nothing behind the first
// page is touched.
func writeSwap(w io.WriterAt, label string, size int64) error {
	id, err := uuid.NewRandom()
	if err != nil {
		return fmt.Errorf("make the swap area's UUID: %w", err)
	}
	p := make([]byte, swapPage)
	binary.LittleEndian.PutUint32(p[1024:], 1)                       // version
	binary.LittleEndian.PutUint32(p[1028:], uint32(size/swapPage-1)) // last page
	copy(p[1036:1052], id[:])
	copy(p[1052:1068], label)
	copy(p[swapPage-10:], "SWAPSPACE2")
	_, err = w.WriteAt(p, 0)
	return err
}
