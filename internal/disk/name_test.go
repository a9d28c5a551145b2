package disk_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/disk"
)

func TestCheckName(t *testing.T) {
	for _, good := range []string{"a", "debian12", "web 1", "Grün", "x.y_z-1", strings.Repeat("n", 255), "G20", "名前"} {
		if err := disk.CheckName("pool", good); err != nil {
			t.Errorf("CheckName(%q) = %v, want nil", good, err)
		}
	}
	for _, bad := range []string{
		"", ".", "..", "-x", "a/b", "a,b", "a:b", "a\nb", "a\x00", " a", "a ", "\xff", "e\u0301",
		"a\u202eb", "a\u200bb", "a\ufffdb", "20G", "4096", "1.5T", strings.Repeat("n", 256), "abcdefghij0123456789",
		"0198f000-0000-7000-8000-000000000000", "0198F000-0000-7000-8000-000000000000",
	} {
		if err := disk.CheckName("pool", bad); !errors.Is(err, errs.Invalid) {
			t.Errorf("CheckName(%q) = %v, want kind invalid", bad, err)
		}
	}
}

func TestParseSize(t *testing.T) {
	for in, want := range map[string]int64{
		"0": 0, "4096": 4096, "1K": 1024, "1k": 1024, "20G": 20 << 30, "20GiB": 20 << 30, "1.5T": 3 << 39, "64T": 64 << 40, "7B": 7,
	} {
		if got, err := disk.ParseSize(in); err != nil || got != want {
			t.Errorf("ParseSize(%q) = %d, %v, want %d", in, got, err, want)
		}
	}
	for _, bad := range []string{"", "G", "20GB", "20X", "-1", "+1G", "1.5", "1e3", "99999999999999999999", "9999999T", "1 G"} {
		if got, err := disk.ParseSize(bad); !errors.Is(err, errs.Invalid) {
			t.Errorf("ParseSize(%q) = %d, %v, want kind invalid", bad, got, err)
		}
	}
}

func TestFormatSize(t *testing.T) {
	for in, want := range map[int64]string{0: "0 B", 512: "512 B", 1024: "1 KiB", 1536: "1.5 KiB", 20 << 30: "20 GiB", -1024: "-1 KiB"} {
		if got := disk.FormatSize(in); got != want {
			t.Errorf("FormatSize(%d) = %q, want %q", in, got, want)
		}
	}
}
