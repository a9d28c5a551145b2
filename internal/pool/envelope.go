package pool

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"fmt"

	"github.com/zeebo/blake3"

	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/disk"
)

// The kinds and the one version of self-descriptions that this build writes
// and reads. A newer version is refused untouched (I13).
const (
	sidecarKind     = "tarn-sidecar"
	markerKind      = "tarn-pool"
	EnvelopeVersion = 1
)

// envelope is how a sidecar or a marker lies in a pool. Blake3 covers the
// record's bytes exactly as they stand.
type envelope struct {
	Format     string          `json:"format"`
	Version    int             `json:"version"`
	Generation int64           `json:"generation"`
	Record     json.RawMessage `json:"record"`
	Blake3     string          `json:"blake3"`
}

func seal(kind string, generation int64, record any) ([]byte, error) {
	body, err := json.Marshal(record)
	if err != nil {
		return nil, errs.New(errs.Internal, "pool.seal", kind, "the record is not plain data: %w", err)
	}
	// An envelope, written by hand: marshalling one would parse the body again.
	return fmt.Appendf(nil, `{"format":%q,"version":%d,"generation":%d,"record":%s,"blake3":"%x"}`+"\n",
		kind, EnvelopeVersion, generation, body, blake3.Sum256(body)), nil
}

func unseal(kind, subject string, data []byte, record any) error {
	var e envelope
	if err := json.Unmarshal(data, &e); err != nil {
		return errs.New(errs.Corrupt, "pool.read", subject, "the %s does not parse: %w", kind, err)
	}
	if e.Format != kind {
		return errs.New(errs.Corrupt, "pool.read", subject, "a %s was expected, this says %q", kind, e.Format)
	}
	if e.Version != EnvelopeVersion {
		return errs.New(errs.Version, "pool.read", subject, "the %s has version %d; this build knows version %d only", kind, e.Version, EnvelopeVersion).
			WithHint("use the tarn that wrote it, or a newer one")
	}
	sum := blake3.Sum256(e.Record)
	if hex.EncodeToString(sum[:]) != e.Blake3 {
		return errs.New(errs.Corrupt, "pool.read", subject, "the %s does not match its checksum", kind)
	}
	dec := json.NewDecoder(bytes.NewReader(e.Record))
	dec.DisallowUnknownFields()
	if err := dec.Decode(record); err != nil {
		return errs.New(errs.Version, "pool.read", subject, "the %s holds what this build does not know: %w", kind, err)
	}
	return nil
}

// IsSidecar reports whether data carries the mark of a sidecar, whole or not.
func IsSidecar(data []byte) bool { return bytes.Contains(data, []byte(`"`+sidecarKind+`"`)) }

// OpenSidecar reads one sidecar's bytes.
func OpenSidecar(name string, data []byte) (disk.Sidecar, error) {
	var s disk.Sidecar
	return s, unseal(sidecarKind, name, data, &s)
}

// SealMarker writes a marker's bytes.
func SealMarker(m disk.Marker) ([]byte, error) { return seal(markerKind, 1, m) }

// OpenMarker reads a marker's bytes.
func OpenMarker(subject string, data []byte) (disk.Marker, error) {
	var m disk.Marker
	return m, unseal(markerKind, subject, data, &m)
}
