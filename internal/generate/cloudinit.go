package generate

import (
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// NoCloud returns the entries of a drive for cloud-init's NoCloud data source,
// labelled LabelNoCloud. It wants user-data and meta-data to be there, so nil
// makes them empty; a nil networkConfig leaves the choice to the guest.
func NoCloud(userData, metaData, networkConfig []byte) []Entry {
	entries := []Entry{{Path: "meta-data", Content: metaData}, {Path: "user-data", Content: userData}}
	if networkConfig != nil {
		entries = append(entries, Entry{Path: "network-config", Content: networkConfig})
	}
	return entries
}

// MetaData returns the meta-data of an instance for which nobody gave one.
func MetaData(instanceID, name string) []byte {
	return fmt.Appendf(nil, "instance-id: %s\nlocal-hostname: %s\n", scalar(instanceID), scalar(hostname(name)))
}

var notHostname = regexp.MustCompile(`[^A-Za-z0-9.-]+`)

// hostname makes a host name of an instance's name: what a host name cannot
// hold becomes a dash, and at most 63 bytes stay.
func hostname(name string) string {
	s := strings.Trim(notHostname.ReplaceAllString(name, "-"), "-.")
	s = strings.Trim(s[:min(len(s), 63)], "-.")
	if s == "" {
		return "localhost"
	}
	return s
}

var plainScalar = regexp.MustCompile(`^([A-Za-z][A-Za-z0-9]*([.-][A-Za-z0-9]+)*|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12})$`)

// scalar writes s so that YAML reads a string: as it is where no reader takes
// it for anything else, otherwise quoted as JSON, which is YAML too.
func scalar(s string) string {
	words := []string{"y", "n", "yes", "no", "on", "off", "true", "false", "null"}
	if plainScalar.MatchString(s) && !slices.Contains(words, strings.ToLower(s)) {
		return s
	}
	b, _ := json.Marshal(s) // a string always marshals
	return string(b)
}
