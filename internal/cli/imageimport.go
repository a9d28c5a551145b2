package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"

	"github.com/tarn-storage/tarn/api"
	"github.com/tarn-storage/tarn/client"
	"github.com/tarn-storage/tarn/diskfmt"
	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/exit"
)

const sourceText = "SOURCE is a file, - for standard input, https://... or glance://ENDPOINT/IMAGE-ID (glance:///IMAGE-ID for the\n" +
	"cloud's own), which the daemon fetches. The format is what you say it is, and so is the compression; an image\n" +
	"that contradicts them, or that could do harm, is refused with exit status 5. Only for glance:// may --format be\n" +
	"left out: then Glance's record says it. A ploop image is its folder, its DiskDescriptor.xml or its root.hds."

func (a *app) imageImport() *cobra.Command {
	var f changing
	var i api.ImageImport
	var said claims
	var minDisk string
	cmd := f.add(a.command(verb{
		use: "import NAME SOURCE --format FORMAT", short: "Import an image", args: []string{"NAME", "SOURCE"}, complete: []names{none, nil},
		long: sourceText + "\n\nA stream cannot be imported with --no-wait.",
		example: "tarn image import debian12 debian12.qcow2 --format qcow2\n" +
			"curl -s https://example.org/disk.raw | tarn image import disk - --format raw --sha256 $SUM\n" +
			"tarn image import debian12 https://example.org/debian12.qcow2 --format qcow2 --checksums https://example.org/SHA512SUMS\n" +
			"tarn image import alpine alpine.raw.gz --format raw --compression gzip --signature alpine.raw.gz.minisig --signing-key alpine.pub\n" +
			"tarn image import web glance:///6c1a1f0e-5f7e-4e6b-9d0c-0d6f5c0c8a11 --cloud production\n" +
			"tarn image import appliance appliance.ova --format ova",
		run: func(ctx context.Context, c *client.Client, args []string) (err error) {
			i.Name = args[0]
			if minDisk != "" {
				if i.MinDisk, err = parseSize("--min-disk", minDisk); err != nil {
					return err
				}
			}
			src, closed, err := a.claimed(args[1], &said)
			if err != nil {
				return err
			}
			defer closed()
			i.Format, i.SHA256, i.Source, i.ImageDetails = said.format, said.sha256, said.source, said.ImageDetails
			out, err := a.upload(ctx, c, f.Options, i, src)
			return a.finish(ctx, c, f, out, err, func(op api.Operation) error {
				return result(a, func(id string) (api.Image, error) { return c.Image(ctx, id) }, "imported"+signedBy(op))(op)
			})
		},
	}))
	said.add(cmd)
	cmd.Flags().StringVar(&minDisk, "min-disk", "", "smallest `SIZE` of a root disk made from it")
	ifAbsentFlag(cmd, &i.IfAbsent, "an image of that name and format, with the digests given,")
	cmd.Flags().StringVar(&i.Pool, "pool", "", "`POOL` that gets the content first")
	a.completeFlag(cmd, "pool", poolNames)
	return cmd
}

// signedBy says whose signature an import verified. The name is the signer's own
// word.
func signedBy(op api.Operation) string {
	var s api.ImageSigned
	if err := json.Unmarshal(op.Result, &s); err != nil || s.KeyID == "" {
		return ""
	}
	return ", signed by " + signer(s)
}

func signer(s api.ImageSigned) string {
	by := "the " + s.Scheme + " key " + s.KeyID
	if s.Name != "" {
		by += fmt.Sprintf(" (%q)", s.Name)
	}
	return by
}

// claims are what the flags say of an image's bytes.
type claims struct {
	format, sha256, source, maxVirtual string
	checksums, signature, signingKey   string
	api.ImageDetails
}

func (s *claims) add(cmd *cobra.Command) {
	f := cmd.Flags()
	f.Var(&imageFormat{choice{&s.format, words(diskfmt.ImageFormats())}}, "format", "the format: "+strings.Join(words(diskfmt.ImageFormats()), ", ")+"; it is never guessed")
	_ = cmd.RegisterFlagCompletionFunc("format", cobra.FixedCompletions(words(diskfmt.ImageFormats()), cobra.ShellCompDirectiveNoFileComp))
	compressions := []string{"none", "gzip", "xz", "zstd", "bzip2"}
	f.Var(newChoice(&s.Compression, compressions...), "compression", "what the source is compressed with (default none)")
	_ = cmd.RegisterFlagCompletionFunc("compression", cobra.FixedCompletions(compressions, cobra.ShellCompDirectiveNoFileComp))
	f.StringVar(&s.maxVirtual, "max-virtual-size", "", "refuse an image larger than `SIZE` (default 64T)")
	f.StringVar(&s.sha256, "sha256", "", "what the SHA-256 of the source must be, in `HEX`")
	f.StringVar(&s.SHA512, "sha512", "", "what the SHA-512 of the source must be, in `HEX`")
	f.StringVar(&s.checksums, "checksums", "", "`FILE` or https URL with the source's checksum by its name, as a SHA256SUMS")
	f.StringVar(&s.signature, "signature", "", "`FILE` with a detached signature of the checksums, or without them of the source: minisign, signify, OpenPGP")
	f.StringVar(&s.signingKey, "signing-key", "", "`FILE` with the public key that must have signed")
	f.StringVar(&s.Cloud, "cloud", "", "`NAME` in the daemon's clouds.yaml, whose credentials Glance is asked with")
}

// imageFormat is a choice among formats.
type imageFormat struct{ choice }

// Set accepts a format.
func (f *imageFormat) Set(s string) error {
	if s == "auto" {
		return errors.New("formats are never guessed: say which of " + strings.Join(f.words, ", ") + " it is")
	}
	return f.choice.Set(s)
}

// Type is what help calls the value.
func (f *imageFormat) Type() string { return "FORMAT" }

func words[S ~string](all []S) []string {
	out := make([]string, len(all))
	for i, w := range all {
		out[i] = string(w)
	}
	return out
}

// maxProofs is how large checksums, signature and key may be together.
const maxProofs = 1 << 20

// claimed opens SOURCE and completes what is said of it. The caller calls closed
// when done.
func (a *app) claimed(source string, s *claims) (src client.Source, closed func(), err error) {
	remote := strings.Contains(source, "://")
	switch glance := strings.HasPrefix(source, "glance"); {
	case s.format == "" && !(remote && glance):
		return src, nil, usage("the format must be stated, it is never guessed").WithHint("add --format, one of %s", strings.Join(words(diskfmt.ImageFormats()), ", "))
	case s.Cloud != "" && !(remote && glance):
		return src, nil, usage("--cloud is for glance:// sources")
	}
	if s.maxVirtual != "" {
		if s.MaxVirtualSize, err = parseSize("--max-virtual-size", s.maxVirtual); err != nil {
			return src, nil, err
		}
	}
	if err := s.readProofs(); err != nil {
		return src, nil, err
	}
	switch {
	case remote:
		s.URL, closed = source, func() {}
		if !strings.HasPrefix(source, "glance") {
			path, _, _ := strings.Cut(strings.TrimSuffix(source, "/"), "?")
			s.File = path[strings.LastIndexByte(path, '/')+1:]
		}
		return src, closed, nil
	case s.format == string(diskfmt.Ploop) && source != "-":
		src, closed, s.Description, err = openPloop(source)
	default:
		src, closed, err = a.openSource(source)
	}
	s.source = source
	if source != "-" {
		s.File = filepath.Base(source)
	}
	return src, closed, err
}

// readProofs reads the files that the flags name.
func (s *claims) readProofs() (err error) {
	if strings.Contains(s.checksums, "://") {
		s.ChecksumsURL, s.checksums = s.checksums, ""
	}
	left := int64(maxProofs)
	for _, p := range []struct {
		flag, path string
		to         *[]byte
	}{{"--checksums", s.checksums, &s.Checksums}, {"--signature", s.signature, &s.Signature}, {"--signing-key", s.signingKey, &s.SigningKey}} {
		if p.path == "" {
			continue
		}
		f, err := openRegular(p.path)
		if err != nil {
			return err
		}
		*p.to, err = io.ReadAll(io.LimitReader(f, left+1))
		_ = f.Close() // was only read
		if err != nil {
			return errs.Wrap(err, "source.open", p.path)
		}
		if left -= int64(len(*p.to)); left < 0 {
			return usage("%s: checksums, signature and key have more than 1 MiB together", p.flag)
		}
		if len(*p.to) == 0 {
			return usage("%s: %s is empty", p.flag, p.path)
		}
	}
	return nil
}

// upload imports; it shows how much of a stream was read, because the daemon
// answers only at its end.
func (a *app) upload(ctx context.Context, c *client.Client, o api.Options, i api.ImageImport, src client.Source) (api.Outcome, error) {
	if src.Stream == nil {
		return c.ImageImport(ctx, o, i, src)
	}
	p := a.progress()
	defer p.close()
	m := &metered{r: src.Stream, p: p, start: time.Now()}
	src.Stream = m
	out, err := c.ImageImport(ctx, o, i, src)
	switch {
	case err == nil || ctx.Err() == nil || !errors.Is(err, errs.Cancelled):
		return out, err
	case m.whole.Load(): // then the daemon may have all it needs
		return out, a.importGoesOn(ctx, c, i.Name)
	}
	return out, errs.New(errs.Cancelled, "cli", "", "the import was stopped; nothing is kept")
}

// importGoesOn says what becomes of an import whose every byte was sent when ctx
// ended. The answer that would have named its operation never came.
func (a *app) importGoesOn(ctx context.Context, c *client.Client, name string) error {
	asking, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*patience)
	defer cancel()
	running, err := c.Operations(asking, "running", everything)
	for _, op := range running.Items {
		if op.Kind == "image.import" && op.Subject.Name == name {
			return goesOn(op.ID)
		}
	}
	if err != nil {
		return errs.New(errs.Cancelled, "cli", "", "stopped waiting; the import may go on").
			WithHint("tarn operation list names it; cancel it: tarn operation cancel ID")
	}
	return errs.New(errs.Cancelled, "cli", "", "stopped waiting; the import has ended").WithHint("see tarn image show %s, tarn operation list", name)
}

// metered shows how much was read, once a second.
type metered struct {
	r           io.Reader
	p           progress
	start, last time.Time
	n           int64
	whole       atomic.Bool // r was read to its end
}

// Read reads as an io.Reader does.
func (m *metered) Read(b []byte) (int, error) {
	n, err := m.r.Read(b)
	m.n += int64(n)
	if err == io.EOF {
		m.whole.Store(true)
	}
	if now := time.Now(); now.Sub(m.last) >= time.Second {
		m.last = now
		rate := int64(float64(m.n) / max(now.Sub(m.start).Seconds(), 0.001))
		m.p.show("upload", api.Progress{Done: m.n, Unit: "bytes", Rate: rate})
	}
	return n, err
}

func (a *app) imageInspect() *cobra.Command {
	var said claims
	cmd := a.command(verb{
		use: "inspect SOURCE --format FORMAT", short: "Say whether an image would be accepted", args: []string{"SOURCE"}, complete: []names{nil},
		long: "The same gate as at import judges SOURCE. Exit status 0 is accept, 5 reject.\n\n" + sourceText,
		example: "tarn image inspect debian12.qcow2 --format qcow2\ntarn image inspect - --format raw -o json < disk.raw\n" +
			"tarn image inspect disk.vmdk.xz --format vmdk --compression xz\ntarn image inspect ./bundle.hdd --format ploop",
		run: func(ctx context.Context, c *client.Client, args []string) error {
			v, err := a.inspected(ctx, c, args[0], &said)
			if err != nil {
				return err
			}
			if err := a.printVerdict(v); err != nil {
				return err
			}
			if v.Verdict != "accept" {
				return exit.Refused
			}
			return nil
		},
	})
	said.add(cmd)
	return cmd
}

// inspected asks for the gate's verdict. A source that is refused before the
// gate sees it has one, too.
func (a *app) inspected(ctx context.Context, c *client.Client, source string, said *claims) (v api.Verdict, err error) {
	src, closed, err := a.claimed(source, said)
	if err == nil {
		defer closed()
		v, err = c.ImageInspect(ctx, api.ImageInspect{Format: said.format, SHA256: said.sha256, Source: said.source, ImageDetails: said.ImageDetails}, src)
	}
	var refused *errs.Error
	if errors.As(err, &refused) && refused.Kind == errs.Unsafe {
		return api.Verdict{Verdict: "reject", Error: refused.Class, Detail: refused.Message, Hint: refused.Hint, Format: said.format, Features: []string{}}, nil
	}
	return v, err
}

func (a *app) printVerdict(v api.Verdict) error {
	virtual := ""
	if v.VirtualSize > 0 {
		virtual = size(v.VirtualSize)
	}
	return a.printObject(v, v.Verdict, []field{
		{"verdict", v.Verdict}, {"error", v.Error}, {"detail", v.Detail}, {"hint", v.Hint}, {"format", v.Format}, {"virtual size", virtual},
		{"features", strings.Join(v.Features, ", ")}, {"sha256", v.SourceSHA256}, {"content", v.Content},
	})
}
