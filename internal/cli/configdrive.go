package cli

import (
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/tarn-storage/tarn/api"
	"github.com/tarn-storage/tarn/errs"
)

// maxDrive bounds the bytes of all files of a config drive.
const maxDrive = 64 << 20

// driveFlags are the flags that describe a config drive.
type driveFlags struct {
	dir, userData, metaData, networkConfig string
}

func (d *driveFlags) add(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&d.dir, "config-drive", "", "make an OpenStack config drive (config-2) of the files in `DIR`")
	f.StringVar(&d.userData, "user-data", "", "make a cloud-init drive (cidata) with this user-data `FILE`")
	f.StringVar(&d.metaData, "meta-data", "", "meta-data `FILE` of the cloud-init drive")
	f.StringVar(&d.networkConfig, "network-config", "", "network-config `FILE` of the cloud-init drive")
	cmd.MarkFlagsMutuallyExclusive("config-drive", "user-data")
	_ = cmd.MarkFlagDirname("config-drive")
}

// read reads the files with the user's rights; nil without a config drive.
func (d *driveFlags) read() (*api.ConfigDrive, error) {
	switch {
	case d.dir != "":
		if d.metaData != "" || d.networkConfig != "" {
			return nil, usage("--meta-data and --network-config go with --user-data, not with --config-drive")
		}
		files, err := readTree(d.dir)
		return &api.ConfigDrive{Kind: "config-2", Files: files}, err
	case d.userData == "" && d.metaData == "" && d.networkConfig == "":
		return nil, nil
	case d.userData == "":
		return nil, usage("--meta-data and --network-config need --user-data")
	}
	drive := &api.ConfigDrive{Kind: "cidata"}
	left := int64(maxDrive)
	for _, file := range []struct{ name, path string }{
		{"user-data", d.userData}, {"meta-data", d.metaData}, {"network-config", d.networkConfig},
	} {
		if file.path == "" {
			continue
		}
		f, err := openRegular(file.path)
		if err != nil {
			return nil, err
		}
		data, err := readAll(f, &left)
		if err != nil {
			return nil, err
		}
		drive.Files = append(drive.Files, api.ConfigFile{Path: file.name, Data: data})
	}
	return drive, nil
}

// readTree reads the directories and regular files below dir and refuses
// anything else. No symbolic link is followed below it.
func readTree(dir string) ([]api.ConfigFile, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, openError(dir, err)
	}
	defer root.Close()
	var files []api.ConfigFile
	left := int64(maxDrive)
	err = fs.WalkDir(root.FS(), ".", func(path string, e fs.DirEntry, err error) error {
		full := filepath.Join(dir, path)
		switch {
		case err != nil:
			return openError(full, err)
		case path == ".":
			return nil
		case e.IsDir():
			files = append(files, api.ConfigFile{Path: path, Dir: true})
			return nil
		case !e.Type().IsRegular():
			return errs.New(errs.Unsafe, "config.read", full, "%s is neither a regular file nor a directory", full).
				WithClass("NOT_REGULAR").WithHint("a config drive holds regular files and directories only")
		}
		f, err := root.Open(path)
		if err != nil {
			return openError(full, err)
		}
		data, err := readAll(f, &left)
		files = append(files, api.ConfigFile{Path: path, Data: data})
		return err
	})
	return files, err
}

func openError(path string, err error) error {
	kind := errs.Invalid
	if os.IsNotExist(err) {
		kind = errs.NotFound
	}
	return errs.New(kind, "config.read", path, "%s cannot be read: %w", path, err)
}

// readAll reads and closes f and takes its size off left.
func readAll(f *os.File, left *int64) ([]byte, error) {
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, *left+1))
	if err != nil {
		return nil, openError(f.Name(), err)
	}
	*left -= int64(len(data))
	if *left < 0 {
		return nil, usage("the config drive's files are larger than %s", size(maxDrive))
	}
	return data, nil
}
