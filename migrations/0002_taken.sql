-- Whether the record came from a peer: of our own ones, what an earlier database wrote (cluster.md §7).
ALTER TABLE records ADD COLUMN taken INTEGER NOT NULL DEFAULT 0 CHECK (taken IN (0, 1));
