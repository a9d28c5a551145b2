package inspect

import (
	"encoding/binary"
	"fmt"

	"github.com/tarn-storage/tarn/diskfmt/strict"
)

// The places of LUKS1 ("LUKS On-Disk Format Specification", figures 1 and 2).
const (
	size1       = 592
	slots1      = 208
	slotSize1   = 48
	slotsOf1    = 8
	slotEnabled = 0x00ac71f3
	slotDead    = 0x0000dead
)

// judge1 judges a whole LUKS1 header. Keys have 16, 32 or 64 bytes: others are
// possible, as for AES of 192 bits, but no program makes them unless it is told.
func judge1(f strict.File, b []byte) error {
	if err := f.Inside(0, size1, "the header"); err != nil {
		return err
	}
	if err := judgeAlgorithms1(b); err != nil {
		return err
	}
	payload := uint64(binary.BigEndian.Uint32(b[104:])) * sectorSize
	key := uint64(binary.BigEndian.Uint32(b[108:]))
	switch {
	case key != 16 && key != 32 && key != 64:
		return strict.Refuse(strict.Feature, "keys of %d bytes at 0x6c; 16, 32 and 64 are known", key)
	case payload == 0:
		return strict.Refuse(strict.External, "the header at 0x68 says that the encrypted data is in another file")
	}
	if err := iterations(binary.BigEndian.Uint32(b[164:]), "the master key at 0xa4"); err != nil {
		return err
	}
	if err := judgeData(f, payload, sectorSize, "the encrypted data"); err != nil {
		return err
	}
	spans := []span{{0, size1, "the header"}, {payload, f.Size - payload, "the encrypted data"}}
	for i := range slotsOf1 {
		s, err := judgeSlot1(b[slots1+i*slotSize1:], key, i)
		if err != nil {
			return err
		}
		if err := f.Inside(s.off, s.n, s.what); err != nil {
			return err
		}
		spans = append(spans, s)
	}
	return disjoint(spans)
}

func judgeAlgorithms1(b []byte) error {
	cipher, err := text(b, 8, 32, "cipher's name")
	if err != nil {
		return err
	}
	mode, err := text(b, 40, 32, "cipher's mode")
	if err != nil {
		return err
	}
	hash, err := text(b, 72, 32, "hash's name")
	if err != nil {
		return err
	}
	if _, err := text(b, 168, 40, "UUID"); err != nil {
		return err
	}
	if err := knownCipher(cipher+"-"+mode, "the disk at 0x8"); err != nil {
		return err
	}
	return knownHash(hash, "the keys at 0x48")
}

// judgeSlot1 judges the key slot at the start of b, in use or not, and returns
// where its material lies.
func judgeSlot1(b []byte, key uint64, i int) (span, error) {
	what := fmt.Sprintf("key slot %d", i)
	off := uint64(binary.BigEndian.Uint32(b[40:])) * sectorSize
	state, n := binary.BigEndian.Uint32(b), binary.BigEndian.Uint32(b[44:])
	switch {
	case state != slotEnabled && state != slotDead:
		return span{}, strict.Refuse(strict.Corrupt, "%s is neither enabled nor disabled: 0x%x", what, state)
	case n != stripes:
		return span{}, strict.Refuse(strict.Corrupt, "%s has %d stripes; %d is the only number", what, n, stripes)
	}
	if state == slotEnabled {
		if err := iterations(binary.BigEndian.Uint32(b[4:]), what); err != nil {
			return span{}, err
		}
	}
	return span{off, key * stripes, "the material of " + what}, nil
}

// iterations refuses too many rounds of PBKDF2, and none.
func iterations[T uint32 | uint64](n T, what string) error {
	switch {
	case n == 0:
		return strict.Refuse(strict.Corrupt, "no iterations for %s", what)
	case n > maxIterations:
		return strict.Refuse(strict.Limit, "%d iterations for %s; %d is the most", n, what, maxIterations).
			WithHint("cryptsetup luksChangeKey --pbkdf-force-iterations makes fewer")
	}
	return nil
}

// judgeData refuses encrypted data that is not there, and whose end is no
// sector's end.
func judgeData(f strict.File, off, sector uint64, what string) error {
	if err := f.Inside(off, sector, what); err != nil {
		return err
	}
	if n := f.Size - off; n%sector != 0 {
		return strict.Refuse(strict.Truncated, "%s at 0x%x has %d bytes, no multiple of %d: the file was cut", what, off, n, sector)
	}
	return nil
}
