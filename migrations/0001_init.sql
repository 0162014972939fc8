-- Facts about this host that are not records: one row a key.
CREATE TABLE meta (
    key   TEXT PRIMARY KEY,
    value TEXT NOT NULL
) STRICT, WITHOUT ROWID;

-- Signed records, our own and those of others, live ones and tombstones (cluster.md §5).
CREATE TABLE records (
    kind      TEXT NOT NULL,
    id        TEXT NOT NULL,
    owner     TEXT NOT NULL,
    version   INTEGER NOT NULL,
    deleted   INTEGER NOT NULL CHECK (deleted IN (0, 1)),
    hash      BLOB NOT NULL CHECK (length(hash) = 32),
    body      TEXT NOT NULL,
    signature TEXT NOT NULL,
    PRIMARY KEY (kind, id, owner)
) STRICT, WITHOUT ROWID;

CREATE INDEX records_by_owner ON records (owner, version);

-- The local view of peers: the key held for each, whether it is trusted, and what the operator set here.
CREATE TABLE peers (
    peer_id     TEXT PRIMARY KEY,
    public_key  TEXT NOT NULL,
    trusted     INTEGER NOT NULL CHECK (trusted IN (0, 1)),
    endpoints   TEXT NOT NULL,
    license_id  TEXT,
    local_name  TEXT,
    qos_enabled INTEGER NOT NULL DEFAULT 1 CHECK (qos_enabled IN (0, 1)),
    created_at  INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
