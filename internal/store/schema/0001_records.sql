-- One text for both engines. INT64, TEXT, SERIAL64, STRICT and KEYED are replaced
-- by each engine's own words; KEYED is a table of short rows that lie in the
-- index over their key. Times are microseconds since 1970 in UTC. TEXT sorts
-- by its bytes. Columns that hold JSON say so.

CREATE TABLE counters (
	name  TEXT  NOT NULL PRIMARY KEY,
	value INT64 NOT NULL
) STRICT KEYED;

CREATE TABLE hosts (
	id         TEXT  NOT NULL PRIMARY KEY CHECK (id <> ''),
	name       TEXT  NOT NULL,
	boot_id    TEXT  NOT NULL,
	created_at INT64 NOT NULL,
	updated_at INT64 NOT NULL
) STRICT;
CREATE INDEX hosts_by_name ON hosts (name);

CREATE TABLE domains (
	id               TEXT  NOT NULL PRIMARY KEY CHECK (id <> ''),
	identity         TEXT  NOT NULL CHECK (identity <> ''),
	overcommit       INT64 NOT NULL CHECK (overcommit >= 0),
	reserve_permille INT64 NOT NULL CHECK (reserve_permille >= 0),
	reserve_bytes    INT64 NOT NULL CHECK (reserve_bytes >= 0),
	created_at       INT64 NOT NULL,
	updated_at       INT64 NOT NULL
) STRICT;
CREATE UNIQUE INDEX domains_identity ON domains (identity);

CREATE TABLE pools (
	id          TEXT  NOT NULL PRIMARY KEY CHECK (id <> ''),
	name        TEXT  NOT NULL CHECK (name <> ''),
	driver      TEXT  NOT NULL CHECK (driver <> ''),
	host_id     TEXT,
	state       TEXT  NOT NULL CHECK (state = 'creating' OR state = 'active' OR state = 'inactive' OR state = 'deleting'),
	path        TEXT  NOT NULL,
	owner_uid   INT64 NOT NULL,
	owner_gid   INT64 NOT NULL,
	identity    TEXT  NOT NULL,
	domain_id   TEXT  NOT NULL REFERENCES domains (id),
	disk_format TEXT  NOT NULL CHECK (disk_format = 'auto' OR disk_format = 'raw' OR disk_format = 'qcow2'),
	created_at  INT64 NOT NULL,
	updated_at  INT64 NOT NULL
) STRICT;
CREATE UNIQUE INDEX pools_name ON pools (name);
CREATE INDEX pools_by_domain ON pools (domain_id);

CREATE TABLE images (
	id            TEXT  NOT NULL PRIMARY KEY CHECK (id <> ''),
	name          TEXT  NOT NULL CHECK (name <> ''),
	state         TEXT  NOT NULL CHECK (state = 'creating' OR state = 'ready' OR state = 'deleting'),
	format        TEXT  NOT NULL CHECK (format <> ''),
	virtual_size  INT64 NOT NULL CHECK (virtual_size >= 0),
	min_disk      INT64 NOT NULL CHECK (min_disk >= 0),
	source_sha256 TEXT  NOT NULL,
	content       TEXT  NOT NULL,
	created_at    INT64 NOT NULL,
	updated_at    INT64 NOT NULL
) STRICT;
CREATE UNIQUE INDEX images_name ON images (name);
CREATE INDEX images_by_content ON images (content);

CREATE TABLE volumes (
	id              TEXT  NOT NULL PRIMARY KEY CHECK (id <> ''),
	pool_id         TEXT  NOT NULL REFERENCES pools (id),
	name            TEXT  NOT NULL CHECK (name <> ''),
	kind            TEXT  NOT NULL CHECK (kind = 'base' OR kind = 'disk'),
	state           TEXT  NOT NULL CHECK (state = 'creating' OR state = 'ready' OR state = 'resizing' OR state = 'deleting' OR state = 'corrupt' OR state = 'lost' OR state = 'quarantined'),
	format          TEXT  NOT NULL CHECK (format <> ''),
	virtual_size    INT64 NOT NULL CHECK (virtual_size >= 0),
	requested_size  INT64 NOT NULL CHECK (requested_size >= 0),
	cluster_size    INT64 NOT NULL CHECK (cluster_size >= 0),
	backing_id      TEXT  REFERENCES volumes (id),
	backing_name    TEXT,
	backing_format  TEXT CHECK (backing_format <> ''),
	backing_content TEXT,
	content         TEXT  NOT NULL,
	content_size    INT64 NOT NULL CHECK (content_size >= 0),
	extents         INT64 NOT NULL CHECK (extents >= 0),
	committed       INT64 NOT NULL CHECK (committed >= 0),
	writing         INT64 NOT NULL CHECK (writing >= 0),
	allocated       INT64 NOT NULL CHECK (allocated >= 0),
	backend_id      TEXT  NOT NULL,
	generation      INT64 NOT NULL,
	created_by      TEXT  NOT NULL,
	created_at      INT64 NOT NULL,
	updated_at      INT64 NOT NULL,
	CHECK (backing_id IS NULL OR (backing_name <> '' AND backing_format <> ''))
) STRICT;
CREATE UNIQUE INDEX volumes_name ON volumes (name, pool_id); -- also finds a name in any pool
CREATE UNIQUE INDEX volumes_base ON volumes (pool_id, content, format) WHERE kind = 'base' AND content <> '';
CREATE INDEX volumes_by_pool ON volumes (pool_id, id);
CREATE INDEX volumes_by_backing ON volumes (backing_id) WHERE backing_id IS NOT NULL;
CREATE INDEX volumes_by_content ON volumes (content, pool_id) WHERE kind = 'base';

-- What each pool's volumes add up to, kept by the statements that write volumes,
-- so that planning does not read every volume.
CREATE TABLE pool_sums (
	pool_id     TEXT  NOT NULL PRIMARY KEY REFERENCES pools (id) ON DELETE CASCADE,
	committed   INT64 NOT NULL,
	writing     INT64 NOT NULL,
	provisioned INT64 NOT NULL,
	allocated   INT64 NOT NULL
) STRICT KEYED;

CREATE TABLE instances (
	id         TEXT  NOT NULL PRIMARY KEY CHECK (id <> ''),
	name       TEXT  NOT NULL CHECK (name <> ''),
	created_at INT64 NOT NULL,
	updated_at INT64 NOT NULL
) STRICT KEYED;
CREATE UNIQUE INDEX instances_name ON instances (name);

CREATE TABLE disks (
	id          TEXT  NOT NULL PRIMARY KEY CHECK (id <> ''),
	instance_id TEXT  NOT NULL REFERENCES instances (id),
	name        TEXT  NOT NULL CHECK (name <> ''),
	role        TEXT  NOT NULL CHECK (role = 'root' OR role = 'ephemeral' OR role = 'swap' OR role = 'config' OR role = 'data' OR role = 'cdrom' OR role = 'rescue'),
	position    INT64 NOT NULL,
	size        INT64 NOT NULL CHECK (size >= 0),
	volume_id   TEXT  NOT NULL REFERENCES volumes (id),
	serial      TEXT  NOT NULL CHECK (serial <> ''),
	bus         TEXT  NOT NULL,
	device      TEXT  NOT NULL,
	boot_index  INT64 NOT NULL,
	read_only   INT64 NOT NULL CHECK (read_only = 0 OR read_only = 1),
	discard     TEXT  NOT NULL,
	cache       TEXT  NOT NULL,
	prealloc    TEXT  NOT NULL,
	source      TEXT  NOT NULL, -- JSON
	driver_info TEXT,           -- JSON
	created_at  INT64 NOT NULL,
	updated_at  INT64 NOT NULL
) STRICT;
CREATE UNIQUE INDEX disks_name ON disks (instance_id, name);
CREATE UNIQUE INDEX disks_volume ON disks (volume_id);
CREATE UNIQUE INDEX disks_serial ON disks (serial);

CREATE TABLE leases (
	volume_id  TEXT  NOT NULL PRIMARY KEY REFERENCES volumes (id),
	host_id    TEXT  NOT NULL CHECK (host_id <> ''),
	boot_id    TEXT  NOT NULL,
	generation INT64 NOT NULL,
	state      TEXT  NOT NULL CHECK (state = 'held' OR state = 'unverified'),
	created_at INT64 NOT NULL
) STRICT KEYED;
CREATE INDEX leases_by_host ON leases (host_id);

CREATE TABLE operations (
	id           TEXT  NOT NULL PRIMARY KEY CHECK (id <> ''),
	kind         TEXT  NOT NULL CHECK (kind <> ''),
	state        TEXT  NOT NULL CHECK (state = 'queued' OR state = 'running' OR state = 'undoing' OR state = 'done' OR state = 'failed' OR state = 'cancelled' OR state = 'needs_operator'),
	subject_type TEXT  NOT NULL,
	subject_id   TEXT  NOT NULL,
	subject_name TEXT  NOT NULL,
	key          TEXT,
	request      TEXT, -- JSON
	result       TEXT, -- JSON
	resources    TEXT, -- JSON: every name it ever took; those it holds are in operation_resources
	steps        TEXT, -- JSON
	progress     TEXT  NOT NULL, -- JSON
	error        TEXT, -- JSON
	cancel       INT64 NOT NULL CHECK (cancel = 0 OR cancel = 1),
	attempts     INT64 NOT NULL,
	owner        TEXT  NOT NULL,
	fence        INT64 NOT NULL,
	created_at   INT64 NOT NULL,
	updated_at   INT64 NOT NULL
) STRICT;
CREATE UNIQUE INDEX operations_key ON operations (kind, key) WHERE key IS NOT NULL;
CREATE INDEX operations_unfinished ON operations (owner, created_at) WHERE state = 'queued' OR state = 'running' OR state = 'undoing';

CREATE TABLE operation_resources (
	resource     TEXT NOT NULL PRIMARY KEY CHECK (resource <> ''),
	operation_id TEXT NOT NULL REFERENCES operations (id)
) STRICT KEYED;

CREATE TABLE events (
	id           SERIAL64,
	at           INT64 NOT NULL,
	type         TEXT  NOT NULL CHECK (type <> ''),
	subject_type TEXT  NOT NULL,
	subject_id   TEXT  NOT NULL,
	subject_name TEXT  NOT NULL,
	operation_id TEXT  NOT NULL
) STRICT;
