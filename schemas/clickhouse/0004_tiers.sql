-- What aggregators say of themselves, so that whoever asks elsewhere knows whether they are well. Read with FINAL.

CREATE TABLE IF NOT EXISTS tapio.tiers (
  tenant      LowCardinality(String),
  cluster     LowCardinality(String),
  tier        LowCardinality(String),
  name        String CODEC(ZSTD(1)),
  version     LowCardinality(String),
  -- healthy or degraded.
  status      LowCardinality(String),
  -- Why it is degraded: a JSON array of texts.
  reasons     String CODEC(ZSTD(1)),
  reported_at DateTime64(6, 'UTC') CODEC(Delta(8), ZSTD(1))
) ENGINE = ReplacingMergeTree(reported_at)
PARTITION BY toDate(reported_at)
ORDER BY (tenant, cluster, tier, name)
TTL toDate(reported_at) + INTERVAL 90 DAY
SETTINGS ttl_only_drop_parts = 1, fsync_after_insert = 1, fsync_part_directory = 1,
  non_replicated_deduplication_window = 10000;
