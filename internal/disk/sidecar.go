package disk

// Sidecar is the self-description of one volume that lies beside it in its
// pool (invariant I14): all records from which a lost database is rebuilt.
type Sidecar struct {
	Volume   Volume    `json:"volume"`
	Images   []Image   `json:"images,omitempty"` // bases: every image with this content
	Instance *Instance `json:"instance,omitempty"`
	Disk     *Disk     `json:"disk,omitempty"`
	Lease    *Lease    `json:"lease,omitempty"`
}

// Marker is the self-description of a pool at its root.
type Marker struct {
	Pool   Pool   `json:"pool"`
	Domain Domain `json:"domain"`
}
