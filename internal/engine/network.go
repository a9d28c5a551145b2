package engine

import (
	"net"
	"strings"

	"github.com/tarn-storage/tarn/internal/pool/driver"
)

// A container that QEMU reaches by a protocol. Keys are named by their files and
// by names that libvirt's secrets have, and never printed.

// networkNode is QEMU's node for n, without what all nodes have. With a key it
// needs the object that secret returns.
func networkNode(n *driver.Network, serial string) node {
	pool, namespace, divided := strings.Cut(n.Pool, "/")
	out := node{"driver": n.Protocol, "pool": pool, "image": n.Image, "user": n.User}
	if divided {
		out["namespace"] = namespace
	}
	if n.Conf != "" {
		out["conf"] = n.Conf
	}
	if n.KeyFile != "" {
		out["key-secret"] = "k-" + serial
	}
	var servers []node
	for _, h := range n.Hosts {
		host, port, _ := net.SplitHostPort(h) // a driver's own words
		servers = append(servers, node{"host": host, "port": port})
	}
	if len(servers) > 0 {
		out["server"] = servers
	}
	return out
}

// secret is QEMU's argument for the key of n.
func secret(n *driver.Network, serial string) []string {
	if n == nil || n.KeyFile == "" {
		return nil
	}
	return []string{"-object", node{"qom-type": "secret", "id": "k-" + serial, "file": n.KeyFile, "format": "base64"}.String()}
}

type (
	xmlHost struct {
		Name string `xml:"name,attr"`
		Port string `xml:"port,attr,omitempty"`
	}
	xmlConfig struct {
		File string `xml:"file,attr"`
	}
	xmlAuth struct {
		User   string    `xml:"username,attr"`
		Secret xmlSecret `xml:"secret"`
	}
	xmlSecret struct {
		Type  string `xml:"type,attr"`
		Usage string `xml:"usage,attr"`
	}
)

// libvirtNetwork is libvirt's source for n. Its key is the secret of libvirt's
// that has the usage "client.USER", as an administrator defines it ("virsh
// secret-define").
func libvirtNetwork(n *driver.Network) xmlSource {
	s := xmlSource{Protocol: n.Protocol, Name: n.Pool + "/" + n.Image}
	for _, h := range n.Hosts {
		host, port, _ := net.SplitHostPort(h)
		s.Hosts = append(s.Hosts, xmlHost{host, port})
	}
	if n.Conf != "" {
		s.Config = &xmlConfig{n.Conf}
	}
	if n.KeyFile != "" {
		s.Auth = &xmlAuth{User: n.User, Secret: xmlSecret{Type: "ceph", Usage: "client." + n.User}}
	}
	return s
}
