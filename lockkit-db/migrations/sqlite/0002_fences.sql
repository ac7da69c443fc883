-- The highest fence that was claimed for each resource. Frozen once released.
CREATE TABLE IF NOT EXISTS lockkit_fence (
    resource TEXT PRIMARY KEY,
    mark     INTEGER NOT NULL
) STRICT, WITHOUT ROWID
