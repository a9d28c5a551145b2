package cli

import (
	"context"
	"strings"

	"github.com/spf13/cobra"

	"github.com/tarn-storage/tarn/api"
	"github.com/tarn-storage/tarn/client"
)

func (a *app) imageCommand() *cobra.Command {
	return a.noun("image", "Manage images",
		"An image is immutable content, judged once at its import. Disks are made from it; it is never a disk.",
		a.imageImport, a.imageList, a.imageShow, a.imageInspect, a.imageExport, a.imageRename, a.imageDelete)
}

func (a *app) imageList() *cobra.Command {
	return a.command(verb{
		use: "list", aliases: []string{"ls"}, short: "List images", example: "tarn image list\ntarn image list -q",
		run: func(ctx context.Context, c *client.Client, _ []string) error {
			l, err := c.Images(ctx, everything)
			if err != nil {
				return err
			}
			return printList(a, l, func(i api.Image) string { return i.ID }, "NAME STATE FORMAT SIZE POOLS CREATED", func(i api.Image) []string {
				return []string{i.Name, i.State, i.Format, size(i.VirtualSize), basePools(i), when(i.CreatedAt)}
			})
		},
	})
}

func basePools(i api.Image) string {
	pools := make([]string, 0, len(i.Bases))
	for _, b := range i.Bases {
		pools = append(pools, b.Pool)
	}
	return strings.Join(pools, ",")
}

func (a *app) imageShow() *cobra.Command {
	return a.command(verb{
		use: "show IMAGE", aliases: []string{"info"}, short: "Show an image", args: []string{"IMAGE"}, complete: []names{imageNames},
		example: "tarn image show debian12\ntarn image show debian12 -o json",
		run: func(ctx context.Context, c *client.Client, args []string) error {
			i, err := c.Image(ctx, args[0])
			if err != nil {
				return err
			}
			return a.printObject(i, i.ID, imageFields(i))
		},
	})
}

func imageFields(i api.Image) []field {
	var algos []string
	for _, sum := range i.Verified {
		algo, _, _ := strings.Cut(sum, ":")
		algos = append(algos, algo)
	}
	signed := ""
	if i.Signed != nil {
		signed = signer(*i.Signed) + ", over the " + i.Signed.Over
	}
	return []field{
		{"name", i.Name}, {"id", i.ID}, {"state", i.State}, {"format", i.Format}, {"virtual size", size(i.VirtualSize)},
		{"min disk", sizeIfAny(i.MinDisk)}, {"sha256", i.SourceSHA256}, {"verified", strings.Join(algos, ", ")}, {"signed by", signed},
		{"source", imageOrigin(i.Source)}, {"content", i.Content}, {"pools", basePools(i)}, {"created", when(i.CreatedAt)},
	}
}

// imageOrigin says where an image came from.
func imageOrigin(s *api.ImageSource) string {
	if s == nil {
		return ""
	}
	text := s.URL + s.Name
	if s.Cloud != "" {
		text += ", cloud " + s.Cloud
	}
	if s.Compression != "" {
		text += ", " + s.Compression
	}
	return text
}

func (a *app) imageRename() *cobra.Command {
	var f changing
	return f.add(a.command(verb{
		use: "rename IMAGE NEW", short: "Give an image another name", args: []string{"IMAGE", "NEW"}, complete: []names{imageNames, none},
		example: "tarn image rename debian12 debian12-old",
		run: func(ctx context.Context, c *client.Client, args []string) error {
			start := func(ctx context.Context, o api.Options) (api.Outcome, error) {
				return c.ImageRename(ctx, o, args[0], args[1])
			}
			return a.change(ctx, c, f, start, result(a, func(id string) (api.Image, error) { return c.Image(ctx, id) }, "renamed to "+args[1]))
		},
	}))
}

func (a *app) imageDelete() *cobra.Command {
	var f changing
	return f.addDestroying(a.command(verb{
		use: "delete IMAGE", aliases: []string{"rm"}, short: "Delete an image", args: []string{"IMAGE"}, complete: []names{imageNames},
		long:    "Its name is free at once. Content that disks read from stays until no disk needs it.",
		example: "tarn image delete debian12 --yes",
		run: func(ctx context.Context, c *client.Client, args []string) error {
			if err := a.destroy(f, "Delete the image %s?", args[0]); err != nil {
				return err
			}
			start := func(ctx context.Context, o api.Options) (api.Outcome, error) { return c.ImageDelete(ctx, o, args[0]) }
			return a.change(ctx, c, f, start, a.gone("deleted"))
		},
	}))
}
