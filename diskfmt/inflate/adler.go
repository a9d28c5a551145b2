package inflate

import "encoding/binary"

const (
	adlerStep   = 128      // bytes that the lanes of 16 bits can add up
	adlerPart   = 64 << 10 // bytes that the sums of 64 bits can, and many more
	adlerPrime  = 65521    // the largest below 1<<16
	everySecond = 0x00ff00ff00ff00ff
)

// checksum returns the Adler-32 of p (RFC 1950, section 8.2) in less than half
// the time of hash/adler32: it adds eight bytes at once, in four lanes of the
// even ones and four of the odd ones.
func checksum(p []byte) uint32 {
	a, b := uint64(1), uint64(0)
	for len(p) > 0 {
		part := p[:min(adlerPart, len(p))]
		p = p[len(part):]
		for ; len(part) >= adlerStep; part = part[adlerStep:] {
			sum, weighted := adlerLanes((*[adlerStep]byte)(part))
			b += adlerStep*a + weighted
			a += sum
		}
		for _, c := range part {
			a += uint64(c)
			b += a
		}
		a, b = a%adlerPrime, b%adlerPrime
	}
	return uint32(b<<16 | a)
}

// adlerLanes returns the sum of p and that of its bytes times their distances
// from its end, which is 1 for the last.
func adlerLanes(p *[adlerStep]byte) (sum, weighted uint64) {
	var even, odd, evens, odds uint64 // columns, and the sums of all that they were
	for i := 0; i < adlerStep; i += 8 {
		w := binary.LittleEndian.Uint64(p[i : i+8])
		even += w & everySecond
		odd += w >> 8 & everySecond
		evens += even
		odds += odd
	}
	const ones, pairs = 0x0001000100010001, 0x0000ffff0000ffff
	rows := evens&pairs + evens>>16&pairs + odds&pairs + odds>>16&pairs
	sum = (even * ones >> 48) + (odd * ones >> 48)
	// Byte j of a word is j nearer to the end than its first: the multiplications
	// leave the columns' sums times 0, 2, 4, 6 and 1, 3, 5, 7 in the upper lane.
	columns := even*0x0000000200040006>>48 + odd*0x0001000300050007>>48
	return sum, 8*(rows&0xffffffff+rows>>32) - columns
}
