package guest

import (
	"encoding/json"
	"fmt"
)

// Report is what the guest said of itself; test/guest/report is its author.
type Report struct {
	Accelerator string // kvm or tcg
	Kernel      string
	Boots       int // of this root disk, this one included
	Uptime      float64
	Disks       []Disk
	Writes      []Write
}

// Disk is one disk as the guest's kernel and blkid see it.
type Disk struct {
	Device      string  `json:"device"` // vda, sda, sr0
	Serial      string  `json:"serial"`
	Size        int64   `json:"size"`
	Sector      int     `json:"sector"`
	ReadOnly    bool    `json:"ro"`
	Root        bool    `json:"root"` // holds the root file system
	Removable   bool    `json:"removable"`
	Table       string  `json:"table"` // partition table, when there is one
	Type        string  `json:"type"`  // file system or swap, when not partitioned
	Label       string  `json:"label"`
	HeadSHA256  string  `json:"head_sha256"`  // of the first 64 KiB
	Written     int     `json:"written"`      // boots in which its file system was written to
	CheckSHA256 string  `json:"check_sha256"` // of the file tarn.check in it
	Swap        bool    `json:"swap"`         // in use as swap
	Config      *Config `json:"config"`
}

// Config is what a config drive holds.
type Config struct {
	InstanceID     string `json:"instance_id"`
	UserDataSHA256 string `json:"user_data_sha256"`
}

// Write is what came of one line "tarn-write DISK OFFSET BASE64" in the
// user-data: the guest writes those bytes to its own disk, which is named by
// its serial or, where that is not known yet, by its device.
type Write struct {
	Disk string `json:"disk"`
	OK   bool   `json:"ok"`
}

// Disk returns the disk with that serial.
func (r Report) Disk(serial string) (Disk, bool) {
	for _, d := range r.Disks {
		if d.Serial == serial {
			return d, true
		}
	}
	return Disk{}, false
}

// add takes one line of the report; the last one returns true.
func (r *Report) add(line []byte) (last bool, err error) {
	var l struct {
		Report string  `json:"report"`
		Kernel string  `json:"kernel"`
		Boots  int     `json:"boots"`
		Uptime float64 `json:"uptime"`
	}
	if err := json.Unmarshal(line, &l); err != nil {
		return false, fmt.Errorf("report line %q: %w", line, err)
	}
	switch l.Report {
	case "begin":
		*r = Report{Accelerator: r.Accelerator, Kernel: l.Kernel}
	case "disk":
		var d Disk
		err = json.Unmarshal(line, &d)
		r.Disks = append(r.Disks, d)
	case "write":
		var w Write
		err = json.Unmarshal(line, &w)
		r.Writes = append(r.Writes, w)
	case "end":
		r.Boots, r.Uptime = l.Boots, l.Uptime
		return true, nil
	default:
		err = fmt.Errorf("report line %q: unknown kind", line)
	}
	return false, err
}
