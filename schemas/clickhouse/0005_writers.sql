-- Who writes. An aggregator that starts writes down the session that it will insert in, and closes those of its earlier
-- lives: an insert of theirs that is still on its way is then refused by the server, however late it comes.

CREATE TABLE IF NOT EXISTS tapio.writers (
  tenant     LowCardinality(String),
  cluster    LowCardinality(String),
  aggregator String CODEC(ZSTD(1)),
  -- The HTTP session of ClickHouse that its inserts name.
  session    String CODEC(ZSTD(1)),
  started_at DateTime64(6, 'UTC') CODEC(Delta(8), ZSTD(1))
) ENGINE = MergeTree
PARTITION BY toDate(started_at)
ORDER BY (tenant, cluster, aggregator, started_at)
TTL toDate(started_at) + INTERVAL 30 DAY
SETTINGS ttl_only_drop_parts = 1, fsync_after_insert = 1, fsync_part_directory = 1,
  non_replicated_deduplication_window = 10000;

-- Which aggregator stored a frame; empty is an earlier release.
ALTER TABLE tapio.frames ADD COLUMN IF NOT EXISTS aggregator LowCardinality(String) AFTER cut;
