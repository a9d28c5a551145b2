package inspect_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"testing"

	"github.com/tarn-storage/tarn/diskfmt"
	"github.com/tarn-storage/tarn/diskfmt/internal/doortest"
	"github.com/tarn-storage/tarn/diskfmt/luks/inspect"
	"github.com/tarn-storage/tarn/diskfmt/strict"
	"github.com/tarn-storage/tarn/errs"
)

var _ diskfmt.Mapper = (*inspect.Source)(nil)

func open(ctx context.Context, img []byte, lim strict.Limits) (*inspect.Source, strict.Report, error) {
	return inspect.Open(ctx, bytes.NewReader(img), int64(len(img)), lim)
}

// luks1 is a disk of 4 KiB behind a header with keys of 16 bytes, whose slots'
// material takes 125 sectors.
func luks1() []byte {
	const payload = 1024 * 512
	b := bytes.Repeat([]byte{0xa5}, payload+4096)
	clear(b[:4096])
	be := binary.BigEndian
	copy(b, "LUKS\xba\xbe\x00\x01aes")
	copy(b[40:], "cbc-essiv:sha256")
	copy(b[72:], "sha256")
	be.PutUint32(b[104:], payload/512)
	be.PutUint32(b[108:], 16)
	be.PutUint32(b[164:], 1000)
	copy(b[168:], "53372b33-9f2d-4e06-a871-9aee74d20120")
	for i := range 8 {
		s := b[208+48*i:]
		be.PutUint32(s, 0xdead)
		be.PutUint32(s[40:], uint32(8+126*i))
		be.PutUint32(s[44:], 4000)
	}
	be.PutUint32(b[208:], 0xac71f3)
	be.PutUint32(b[212:], 1000)
	return b
}

// The JSON area of luks2, as cryptsetup writes it.
const metadata = `{"keyslots":{"0":{"type":"luks2","key_size":16,"af":{"type":"luks1","stripes":4000,"hash":"sha256"},` +
	`"area":{"type":"raw","offset":"32768","size":"65536","encryption":"aes-xts-plain64","key_size":64},` +
	`"kdf":{"type":"argon2id","time":4,"memory":1048576,"cpus":4,"salt":"YQ=="}},` +
	`"31":{"type":"luks2","priority":2,"key_size":16,"af":{"type":"luks1","stripes":4000,"hash":"sha1"},` +
	`"area":{"type":"raw","offset":"98304","size":"65536","encryption":"aes-cbc-essiv:sha256","key_size":32},` +
	`"kdf":{"type":"pbkdf2","hash":"sha512","iterations":1000,"salt":"YQ=="}}},` +
	`"tokens":{"0":{"type":"luks2-keyring","keyslots":["31"],"key_description":"a key"}},` +
	`"segments":{"0":{"type":"crypt","offset":"294912","size":"dynamic","iv_tweak":"0","encryption":"aes-xts-plain64","sector_size":4096}},` +
	`"digests":{"0":{"type":"pbkdf2","keyslots":["0","31"],"segments":["0"],"hash":"sha256","iterations":1000,"salt":"YQ==","digest":"YQ=="}},` +
	`"config":{"json_size":"12288","keyslots_size":"258048","flags":["allow-discards"]}}`

const data2 = 294912

// headers makes the two headers of size bytes around a JSON area.
func headers(size int, text string) []byte {
	b := make([]byte, 2*size)
	for i, magic := range []string{"LUKS\xba\xbe\x00\x02", "SKUL\xba\xbe\x00\x02"} {
		h := b[i*size : (i+1)*size]
		copy(h, magic)
		binary.BigEndian.PutUint64(h[8:], uint64(size))
		binary.BigEndian.PutUint64(h[16:], 3)
		copy(h[72:], "sha256")
		copy(h[104:], fmt.Sprintf("salt of header %d", i))
		copy(h[168:], "53372b33-9f2d-4e06-a871-9aee74d20120")
		binary.BigEndian.PutUint64(h[256:], uint64(i*size))
		copy(h[4096:], text)
	}
	return sum(b)
}

// sum corrects the checksums of both headers.
func sum(b []byte) []byte {
	size := int(binary.BigEndian.Uint64(b[8:]))
	for h := b; len(h) >= size && size > 4096 && len(b)-len(h) < 2*size; h = h[size:] {
		clear(h[448:512])
		s := sha256.Sum256(h[:size])
		copy(h[448:], s[:])
	}
	return b
}

func image2(text string) []byte {
	b := append(headers(16<<10, text), bytes.Repeat([]byte{0x5a}, data2-32<<10+8192)...)
	return b
}

func luks2() []byte { return image2(metadata) }

func TestSoundImages(t *testing.T) {
	big := strings.Replace(metadata, `"12288"`, `"4190208"`, 1)
	for old, now := range map[string]string{`"32768"`: `"8388608"`, `"98304"`: `"8454144"`, `"294912"`: `"8650752"`} {
		big = strings.Replace(big, old, now, 1)
	}
	for _, row := range []struct {
		name, want string
		img        []byte
	}{
		{"LUKS1", "LUKS1", luks1()},
		{"LUKS2", "LUKS2,2 key slots", luks2()},
		{"LUKS2 with the largest header", "LUKS2,2 key slots", append(headers(4<<20, big), make([]byte, 8650752-8<<20+4096)...)},
		{"a segment of fixed size", "LUKS2,2 key slots", image2(strings.Replace(metadata, `"dynamic"`, `"4096"`, 1))},
	} {
		s, rep, err := open(t.Context(), row.img, strict.Limits{})
		if err != nil {
			t.Errorf("%s: %v", row.name, err)
			continue
		}
		if got := strings.Join(rep.Features, ","); got != row.want || rep.VirtualSize != int64(len(row.img)) || rep.DataBytes != rep.VirtualSize {
			t.Errorf("%s: Open reports %+v, want %s", row.name, rep, row.want)
		}
		if _, err := inspect.Header(bytes.NewReader(row.img[:inspect.HeaderSize]), int64(len(row.img)), strict.Limits{}); err != nil {
			t.Errorf("%s: Header: %v", row.name, err)
		}
		if !bytes.Equal(doortest.Contents(t, s, row.img), row.img) {
			t.Errorf("%s: the disk is not the file", row.name)
		}
		doortest.Bounds(t, s)
	}
}

func TestHostile1(t *testing.T) {
	be, put, all := doortest.BE32, doortest.Put, doortest.All
	doortest.Refuses(t, inspect.Open, luks1, []doortest.Row{
		{"empty", doortest.Cut(0), strict.Empty, "empty"},
		{"one byte", doortest.Cut(1), strict.Mismatch, "magic"},
		{"another magic", put(5, "\xbf"), strict.Mismatch, "magic"},
		{"seven bytes", doortest.Cut(7), strict.Truncated, "header"},
		{"version 0", put(7, "\x00"), strict.Version, "version 0"},
		{"version 3", put(7, "\x03"), strict.Version, "version 3"},
		{"cipher without an end", put(8, strings.Repeat("a", 32)), strict.Corrupt, "cipher's name at 0x8"},
		{"mode without an end", put(40, strings.Repeat("a", 32)), strict.Corrupt, "cipher's mode at 0x28"},
		{"hash without an end", put(72, strings.Repeat("a", 32)), strict.Corrupt, "hash's name at 0x48"},
		{"UUID without an end", put(168, strings.Repeat("a", 40)), strict.Corrupt, "UUID at 0xa8"},
		{"bytes behind the cipher", put(20, "x"), strict.Corrupt, "0x8"},
		{"no encryption", put(8, "cipher_null\x00"), strict.Feature, "cipher"},
		{"the kernel's notation", all(put(8, "capi:cbc(aes)")), strict.Feature, "cipher"},
		{"unknown mode", put(40, "xyz-plain64\x00\x00\x00\x00\x00"), strict.Feature, "cipher"},
		{"unknown IV", put(40, "cbc-essif:sha256"), strict.Feature, "cipher"},
		{"unknown hash of the IV", put(40, "cbc-essiv:shb256"), strict.Feature, "cipher"},
		{"unknown hash", put(72, "\x1b[2Jxx"), strict.Feature, "1b5b324a"},
		{"keys of 24 bytes", be(108, 24), strict.Feature, "24 bytes"},
		{"keys of 4 GiB", be(108, 1<<32-1), strict.Feature, "4294967295 bytes"},
		{"data in another file", be(104, 0), strict.External, "another file"},
		{"data past the end", be(104, 1<<32-1), strict.Truncated, "encrypted data"},
		{"data at the end", be(104, 1032), strict.Truncated, "encrypted data"},
		{"data on a slot", be(104, 1000), strict.Overlap, "key slot 7"},
		{"data on the header", be(104, 1), strict.Overlap, "header"},
		{"no rounds", be(164, 0), strict.Corrupt, "no iterations"},
		{"many rounds", be(164, 1<<32-1), strict.Limit, "4294967295 iterations"},
		{"many rounds of a slot", be(212, 12_000_001), strict.Limit, "key slot 0"},
		{"slot in no state", be(208+48, 1), strict.Corrupt, "key slot 1"},
		{"few stripes", be(208+44, 3999), strict.Corrupt, "3999 stripes"},
		{"many stripes of a slot not in use", be(208+48+44, 1<<32-1), strict.Corrupt, "key slot 1"},
		{"slot past the end", be(208+40, 1<<32-1), strict.Truncated, "key slot 0"},
		{"slot on the header", be(208+40, 1), strict.Overlap, "key slot 0"},
		{"slot on another", be(208+48+40, 100), strict.Overlap, "key slot 1"},
		{"cut in a sector", doortest.Cut(1024*512 + 513), strict.Truncated, "was cut"},
	})
	img := luks1()
	doortest.Truncations(t, inspect.Open, img, 0, 1, 6, 8, 591, 592, 4096, 100<<10, 1024*512, 1024*512+1, len(img)-1)
}

// js edits the JSON area and makes the image anew.
func js(old, now string) doortest.Change {
	return func([]byte) []byte {
		if strings.Count(metadata, old) == 0 {
			panic(old)
		}
		return image2(strings.Replace(metadata, old, now, 1))
	}
}

func TestHostile2(t *testing.T) {
	put, all, be64 := doortest.Put, doortest.All, doortest.BE64
	deep := strings.Repeat("[", 40) + strings.Repeat("]", 40)
	doortest.Refuses(t, inspect.Open, luks2, []doortest.Row{
		{"a header of 8 MiB", be64(8, 8<<20), strict.Limit, "8388608"},
		{"a header of 2^64-1", be64(8, 1<<64-1), strict.Limit, "0x8"},
		{"a header of 4 KiB", be64(8, 4096), strict.Corrupt, "4096"},
		{"a header of 17 KiB", be64(8, 17<<10), strict.Corrupt, "17408"},
		{"a header past the end", be64(8, 4<<20), strict.Truncated, "the header"},
		{"a header elsewhere", be64(256, 4096), strict.Corrupt, "0x1000"},
		{"label without an end", put(24, strings.Repeat("a", 48)), strict.Corrupt, "label"},
		{"another checksum", put(72, "sha512"), strict.Feature, "736861353132"},
		{"a bit of the first header", put(4096+100, "\x7f"), strict.Checksum, "0x0"},
		{"a bit of the second header", put(16<<10+4096+100, "\x7f"), strict.Checksum, "0x4000"},
		{"a sequence number", all(put(23, "\x04"), sum), strict.Corrupt, "differ"},
		{"two texts", all(put(4096+2, "K"), sum), strict.Corrupt, "differ"},
		{"no second header", put(16<<10, "xxxx"), strict.Corrupt, "no second"},
		{"no end of text", func([]byte) []byte { return image2(metadata + strings.Repeat(" ", 12288-len(metadata))) }, strict.Corrupt, "end in zeroes"},
		{"more behind the text", func([]byte) []byte { return image2(metadata + "\x00x") }, strict.Corrupt, "end in zeroes"},
		{"no text", func([]byte) []byte { return image2("") }, strict.Corrupt, "object"},
		{"a list", func([]byte) []byte { return image2("[]") }, strict.Corrupt, "object"},
		{"two objects", func([]byte) []byte { return image2(metadata + "{}") }, strict.Corrupt, "more than one"},
		{"half an object", func([]byte) []byte { return image2(metadata[:500]) }, strict.Corrupt, "no JSON"},
		{"no UTF-8", js(`"a key"`, "\"\xff\""), strict.Corrupt, "UTF-8"},
		{"a name twice", js(`"priority":2`, `"priority":2,"priority":2`), strict.Corrupt, "twice"},
		{"deep", js(`"a key"`, deep), strict.Limit, "32 deep"},
		{"a fraction", js(`"key_size":16`, `"key_size":1.6e1`), strict.Corrupt, "key_size"},
		{"a negative number", js(`"key_size":16`, `"key_size":-1`), strict.Corrupt, "key_size"},
		{"a number for a string", js(`"32768"`, `32768`), strict.Corrupt, "offset"},
		{"an unknown part", js(`"tokens"`, `"spare":{},"tokens"`), strict.Feature, "not known"},
		{"no tokens", js(`"tokens":{"0":{"type":"luks2-keyring","keyslots":["31"],"key_description":"a key"}},`, ""), strict.Corrupt, "tokens"},
		{"another JSON size", js(`"12288"`, `"12289"`), strict.Corrupt, "12289"},
		{"an odd key area", js(`"258048"`, `"258049"`), strict.Corrupt, "258049"},
		{"a huge key area", js(`"258048"`, `"9223372036854771712"`), strict.Corrupt, "key slots' area"},
		{"a key area past the end", js(`"258048"`, `"4096000"`), strict.Truncated, "key slots' area"},
		{"in re-encryption", js(`"flags":["allow-discards"]`, `"requirements":{"mandatory":["online-reencrypt-v2"]}`), strict.Dirty, "anew"},
		{"an unknown requirement", js(`"flags":["allow-discards"]`, `"requirements":{"mandatory":["x"]}`), strict.Feature, "requires"},
		{"slot of re-encryption", js(`"type":"luks2"`, `"type":"reencrypt"`), strict.Dirty, "key slot 0"},
		{"slot of another type", js(`"type":"luks2"`, `"type":"luks3"`), strict.Feature, "key slot 0"},
		{"slot 32", js(`"31":{`, `"32":{`), strict.Corrupt, "names other than"},
		{"slot 00", js(`"31":{`, `"00":{`), strict.Corrupt, "names other than"},
		{"slot that is a list", js(`"tokens":{"0":{"type":"luks2-keyring","keyslots":["31"],"key_description":"a key"}`, `"tokens":{"0":[]`), strict.Corrupt, "token 0"},
		{"no key", js(`"key_size":16`, `"key_size":0`), strict.Corrupt, "key of 0 bytes"},
		{"a huge key", js(`"key_size":16`, `"key_size":4611686018427387904`), strict.Corrupt, "key slot 0"},
		{"few stripes", js(`4000`, `3999`), strict.Feature, "stripes"},
		{"unknown hash", js(`"hash":"sha1"`, `"hash":"md2"`), strict.Feature, "hash of key slot 31"},
		{"unknown cipher", js(`"aes-xts-plain64","key_size"`, `"cipher_null-ecb","key_size"`), strict.Feature, "cipher of key slot 0"},
		{"area of another type", js(`"type":"raw"`, `"type":"journal"`), strict.Feature, "key slot 0"},
		{"area on the header", js(`"32768"`, `"4096"`), strict.Overlap, "header"},
		{"area outside", js(`"98304"`, `"290816"`), strict.Corrupt, "not in the key slots' area"},
		{"area far away", js(`"98304"`, `"9223372036854775807"`), strict.Corrupt, "not in the key slots' area"},
		{"area on another", js(`"98304"`, `"94208"`), strict.Overlap, "key slot 31"},
		{"area too small", js(`"65536"`, `"61440"`), strict.Corrupt, "its key needs 64000"},
		{"2 GiB of argon2", js(`1048576`, `2097152`), strict.Limit, "2097152 KiB"},
		{"2^63 of argon2", js(`1048576`, `9223372036854775807`), strict.Limit, "memory"},
		{"many passes", js(`"time":4`, `"time":4294967295`), strict.Limit, "4294967295 passes"},
		{"no passes", js(`"time":4`, `"time":0`), strict.Corrupt, "no memory"},
		{"many threads", js(`"cpus":4`, `"cpus":65`), strict.Limit, "65 threads"},
		{"many rounds", js(`"iterations":1000`, `"iterations":12000001`), strict.Limit, "key slot 31"},
		{"another derivation", js(`"argon2id"`, `"scrypt"`), strict.Feature, "736372797074"},
		{"no segment", js(`"0":{"type":"crypt","offset":"294912","size":"dynamic","iv_tweak":"0","encryption":"aes-xts-plain64","sector_size":4096}`, ""), strict.Corrupt, "no segment"},
		{"segment of another type", js(`"crypt"`, `"linear"`), strict.Feature, "segment 0"},
		{"segment without encryption", js(`"iv_tweak":"0","encryption":"aes-xts-plain64"`, `"iv_tweak":"0","encryption":"null"`), strict.Feature, "segment 0"},
		{"segment with checksums", js(`"iv_tweak":"0"`, `"iv_tweak":"0","integrity":{"type":"hmac(sha256)"}`), strict.Feature, "checksums"},
		{"segment with flags", js(`"iv_tweak":"0"`, `"iv_tweak":"0","flags":["backup-final"]`), strict.Feature, "flags"},
		{"sectors of 8 KiB", js(`"sector_size":4096`, `"sector_size":8192`), strict.Corrupt, "8192"},
		{"segment in another file", js(`"294912"`, `"0"`), strict.External, "another file"},
		{"segment in a sector", js(`"294912"`, `"295424"`), strict.Corrupt, "inside a sector"},
		{"segment on the header", js(`"294912"`, `"4096"`), strict.Overlap, "header"},
		{"segment on the keys", js(`"294912"`, `"286720"`), strict.Overlap, "key slots' area"},
		{"segment past the end", js(`"294912"`, `"303104"`), strict.Truncated, "segment 0"},
		{"segment cut off", js(`"dynamic"`, `"12288"`), strict.Truncated, "segment 0"},
		{"segment of no sectors", js(`"dynamic"`, `"100"`), strict.Corrupt, "no sectors"},
		{"two segments on each other", js(`"segments":{`, `"segments":{"1":{"type":"crypt","offset":"299008","size":"4096","iv_tweak":"0","encryption":"aes-xts-plain64","sector_size":512},`), strict.Overlap, "segment 1"},
		{"digest of another type", js(`"0":{"type":"pbkdf2"`, `"0":{"type":"argon2"`), strict.Feature, "digest 0"},
		{"digest of a slot that is not there", js(`["0","31"]`, `["0","30"]`), strict.Corrupt, "digest 0"},
		{"digest of a segment that is not there", js(`"segments":["0"]`, `"segments":["1"]`), strict.Corrupt, "digest 0"},
		{"token of a slot that is not there", js(`["31"]`, `["1"]`), strict.Corrupt, "token 0"},
		{"token of numbers", js(`["31"]`, `[31]`), strict.Corrupt, "strings"},
		{"cut in a sector", doortest.Cut(data2 + 4096 + 512), strict.Truncated, "was cut"},
	})
	img := luks2()
	doortest.Truncations(t, inspect.Open, img, 8, 4095, 4096, 16<<10, 32<<10-1, 32<<10, 100<<10, data2, data2+4095, len(img)-1)
}

func TestManyValuesAreALimit(t *testing.T) {
	many := strings.Replace(metadata, `"a key"`, "["+strings.Repeat("0,", 70_000)+"0]", 1)
	many = strings.Replace(many, `"12288"`, `"4190208"`, 1)
	img := append(headers(4<<20, many), make([]byte, 1<<20)...)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	_, _, err := open(t.Context(), img, strict.Limits{})
	runtime.ReadMemStats(&after)
	if strict.ClassOf(err) != strict.Limit {
		t.Errorf("70,000 values: got %v, want LIMIT", err)
	}
	if got, most := after.TotalAlloc-before.TotalAlloc, uint64(64<<20); got > most {
		t.Errorf("allocated %d bytes, want at most %d", got, most)
	}
}

func TestLimits(t *testing.T) {
	img := luks2()
	if _, _, err := open(t.Context(), img, strict.Limits{VirtualSize: int64(len(img)) - 1}); strict.ClassOf(err) != strict.Quota {
		t.Errorf("a file larger than allowed: got %v, want QUOTA", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := open(ctx, img, strict.Limits{}); !errors.Is(err, errs.Cancelled) {
		t.Errorf("a cancelled context: got %v, want %v", err, errs.Cancelled)
	}
}

// FuzzInspect takes a LUKS2 header of 16 KiB as its first 512 bytes and its JSON
// text, and makes the second one and the checksums, which no fuzzer finds.
func FuzzInspect(f *testing.F) {
	const size = 16 << 10
	f.Fuzz(func(t *testing.T, img []byte, zeroes uint32) {
		if len(img) > 512 && bytes.HasPrefix(img, []byte("LUKS\xba\xbe\x00\x02")) && binary.BigEndian.Uint64(img[8:]) == size {
			b := make([]byte, 2*size)
			copy(b, img[:512])
			copy(b[4096:size], img[512:])
			copy(b[size:], b[:size])
			copy(b[size:], "SKUL")
			binary.BigEndian.PutUint64(b[size+256:], size)
			img = sum(b)
		}
		doortest.Fuzz(t, img, zeroes, inspect.Open, inspect.Header, inspect.HeaderSize)
	})
}
