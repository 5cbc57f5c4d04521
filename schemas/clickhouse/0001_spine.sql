-- The spine's tables: what arrived, what was lost, what it means.
--
-- Rules that every table keeps (a test in central/store reads this file): partition by day and a TTL that drops
-- whole parts; synced to disk before an insert is acknowledged; a window of remembered blocks, so that a repeated
-- insert is harmless. Names of few distinct values are LowCardinality, times are Delta-coded.

CREATE DATABASE IF NOT EXISTS tapio;

-- One row per event. The id is (tenant, source_id, incarnation, sequence, row); the columns from time_micros on are
-- those of the field table in schemas/src/field.rs, by name and type. Names (namespace, pod, workload, service) are
-- what the aggregator knew when it stored the event; empty is unknown.
CREATE TABLE IF NOT EXISTS tapio.events (
  tenant      LowCardinality(String),
  cluster     LowCardinality(String),
  node        LowCardinality(String),
  source_id   FixedString(16) CODEC(ZSTD(1)),
  incarnation UInt64 CODEC(ZSTD(1)),
  sequence    UInt64 CODEC(Delta(8), ZSTD(1)),
  row         UInt32 CODEC(Delta(4), ZSTD(1)),
  namespace   LowCardinality(String),
  pod         LowCardinality(String),
  workload    LowCardinality(String),
  service     LowCardinality(String),
  -- core
  time_micros                    DateTime64(6, 'UTC') CODEC(Delta(8), ZSTD(1)),
  time_error_micros              UInt32 CODEC(ZSTD(1)),
  kind                           UInt8 CODEC(ZSTD(1)),
  probe                          LowCardinality(String) CODEC(ZSTD(1)),
  severity                       UInt8 CODEC(ZSTD(1)),
  count                          UInt32 CODEC(ZSTD(1)),
  duration_micros                UInt64 CODEC(ZSTD(1)),
  intent                         LowCardinality(String) CODEC(ZSTD(1)),
  -- trace
  trace_trace_id                 FixedString(16) CODEC(ZSTD(1)),
  trace_span_id                  UInt64 CODEC(ZSTD(1)),
  trace_parent_span_id           UInt64 CODEC(ZSTD(1)),
  trace_flags                    UInt8 CODEC(ZSTD(1)),
  trace_link                     UInt8 CODEC(ZSTD(1)),
  -- entity
  entity_container_id            LowCardinality(String) CODEC(ZSTD(1)),
  entity_pod_uid                 LowCardinality(String) CODEC(ZSTD(1)),
  entity_peer_container_id       LowCardinality(String) CODEC(ZSTD(1)),
  entity_peer_pod_uid            LowCardinality(String) CODEC(ZSTD(1)),
  entity_attributes              String CODEC(ZSTD(1)),
  -- kernel
  kernel_pid                     UInt32 CODEC(ZSTD(1)),
  kernel_tid                     UInt32 CODEC(ZSTD(1)),
  kernel_parent_pid              UInt32 CODEC(ZSTD(1)),
  kernel_start_boot_nanos        UInt64 CODEC(Delta(8), ZSTD(1)),
  kernel_cgroup_id               UInt64 CODEC(Delta(8), ZSTD(1)),
  kernel_command                 LowCardinality(String) CODEC(ZSTD(1)),
  kernel_syscall                 LowCardinality(String) CODEC(ZSTD(1)),
  kernel_errno                   UInt16 CODEC(ZSTD(1)),
  kernel_signal                  UInt8 CODEC(ZSTD(1)),
  kernel_exit_code               UInt8 CODEC(ZSTD(1)),
  kernel_sender_pid              UInt32 CODEC(ZSTD(1)),
  kernel_path                    String CODEC(ZSTD(1)),
  kernel_size_bytes              UInt64 CODEC(ZSTD(1)),
  kernel_limit_bytes             UInt64 CODEC(ZSTD(1)),
  kernel_uid                     UInt32 CODEC(ZSTD(1)),
  -- network
  network_local_address          IPv6 CODEC(ZSTD(1)),
  network_remote_address         IPv6 CODEC(ZSTD(1)),
  network_local_port             UInt16 CODEC(ZSTD(1)),
  network_remote_port            UInt16 CODEC(ZSTD(1)),
  network_protocol               LowCardinality(String) CODEC(ZSTD(1)),
  network_direction              LowCardinality(String) CODEC(ZSTD(1)),
  network_method                 LowCardinality(String) CODEC(ZSTD(1)),
  network_route                  LowCardinality(String) CODEC(ZSTD(1)),
  network_status                 UInt16 CODEC(ZSTD(1)),
  network_received_bytes         UInt64 CODEC(ZSTD(1)),
  network_sent_bytes             UInt64 CODEC(ZSTD(1)),
  network_target                 String CODEC(ZSTD(1)),
  network_old_state              LowCardinality(String) CODEC(ZSTD(1)),
  network_new_state              LowCardinality(String) CODEC(ZSTD(1)),
  -- application
  application_logger             LowCardinality(String) CODEC(ZSTD(1)),
  application_message_template   String CODEC(ZSTD(1)),
  application_parameters         String CODEC(ZSTD(1)),
  application_error_type         LowCardinality(String) CODEC(ZSTD(1)),
  application_stack_trace        String CODEC(ZSTD(1)),
  -- kubernetes
  kubernetes_object_kind         LowCardinality(String) CODEC(ZSTD(1)),
  kubernetes_namespace           LowCardinality(String) CODEC(ZSTD(1)),
  kubernetes_name                String CODEC(ZSTD(1)),
  kubernetes_uid                 String CODEC(ZSTD(1)),
  kubernetes_reason              LowCardinality(String) CODEC(ZSTD(1)),
  kubernetes_message             String CODEC(ZSTD(1)),
  kubernetes_restarts            UInt32 CODEC(ZSTD(1)),
  -- metric
  metric_name                    LowCardinality(String) CODEC(ZSTD(1)),
  metric_unit                    LowCardinality(String) CODEC(ZSTD(1)),
  metric_value                   Float64 CODEC(ZSTD(1)),
  -- impact
  impact_business                Float64 CODEC(ZSTD(1)),
  impact_customer_facing         UInt8 CODEC(ZSTD(1)),
  impact_revenue_impacting       UInt8 CODEC(ZSTD(1)),
  impact_slo_impacting           UInt8 CODEC(ZSTD(1)),
  impact_predicted_outcome       LowCardinality(String) CODEC(ZSTD(1)),
  -- correlation
  correlation_incident_id        LowCardinality(String) CODEC(ZSTD(1)),
  correlation_pattern            LowCardinality(String) CODEC(ZSTD(1)),
  correlation_root_cause         String CODEC(ZSTD(1)),
  correlation_recommended_action String CODEC(ZSTD(1)),
  -- raw
  raw_format                     LowCardinality(String) CODEC(ZSTD(1)),
  raw_body                       String CODEC(ZSTD(1)),
  INDEX trace_id_bloom trace_trace_id TYPE bloom_filter(0.01) GRANULARITY 1,
  INDEX container_bloom entity_container_id TYPE bloom_filter(0.01) GRANULARITY 4,
  INDEX sequence_range sequence TYPE minmax GRANULARITY 4
) ENGINE = MergeTree
PARTITION BY toDate(time_micros)
ORDER BY (tenant, cluster, toStartOfMinute(time_micros), kind, entity_pod_uid, time_micros)
TTL toDate(time_micros) + INTERVAL 30 DAY
SETTINGS ttl_only_drop_parts = 1, fsync_after_insert = 1, fsync_part_directory = 1,
  non_replicated_deduplication_window = 10000;

-- How many events of each kind a minute saw; dashboards read this instead of the events.
CREATE TABLE IF NOT EXISTS tapio.events_per_minute (
  tenant          LowCardinality(String),
  cluster         LowCardinality(String),
  minute          DateTime('UTC') CODEC(Delta(4), ZSTD(1)),
  node            LowCardinality(String),
  service         LowCardinality(String),
  kind            UInt8,
  intent          LowCardinality(String),
  severity        UInt8,
  events          UInt64 CODEC(ZSTD(1)),
  rows            UInt64 CODEC(ZSTD(1)),
  duration_micros UInt64 CODEC(ZSTD(1))
) ENGINE = SummingMergeTree((events, rows, duration_micros))
PARTITION BY toDate(minute)
ORDER BY (tenant, cluster, minute, node, service, kind, intent, severity)
TTL toDate(minute) + INTERVAL 400 DAY
SETTINGS ttl_only_drop_parts = 1, fsync_after_insert = 1, fsync_part_directory = 1,
  non_replicated_deduplication_window = 10000;

CREATE MATERIALIZED VIEW IF NOT EXISTS tapio.events_per_minute_view TO tapio.events_per_minute AS
SELECT
  tenant, cluster, toDateTime(toStartOfMinute(time_micros), 'UTC') AS minute, node, service, kind, intent, severity,
  sum(count) AS events, count() AS rows, sum(duration_micros) AS duration_micros
FROM tapio.events
GROUP BY tenant, cluster, minute, node, service, kind, intent, severity;

-- One row per stored frame, inserted after everything else of the frame: a frame that has a row here is complete.
CREATE TABLE IF NOT EXISTS tapio.frames (
  tenant        LowCardinality(String),
  cluster       LowCardinality(String),
  node          LowCardinality(String),
  source_id     FixedString(16) CODEC(ZSTD(1)),
  incarnation   UInt64 CODEC(ZSTD(1)),
  sequence      UInt64 CODEC(Delta(8), ZSTD(1)),
  events        UInt32 CODEC(ZSTD(1)),
  batch_version UInt16,
  received_at   DateTime64(6, 'UTC') CODEC(Delta(8), ZSTD(1)),
  cut           UInt64 CODEC(Delta(8), ZSTD(1))
) ENGINE = MergeTree
PARTITION BY toDate(received_at)
ORDER BY (tenant, source_id, incarnation, sequence)
TTL toDate(received_at) + INTERVAL 30 DAY
SETTINGS ttl_only_drop_parts = 1, fsync_after_insert = 1, fsync_part_directory = 1,
  non_replicated_deduplication_window = 10000;

-- The sources that were heard, what works on them, and when they were heard last. Read with FINAL.
CREATE TABLE IF NOT EXISTS tapio.sources (
  tenant      LowCardinality(String),
  cluster     LowCardinality(String),
  node        LowCardinality(String),
  source_id   FixedString(16),
  spiffe_id   String CODEC(ZSTD(1)),
  incarnation UInt64,
  capability  String CODEC(ZSTD(1)),
  last_seen   DateTime64(6, 'UTC') CODEC(Delta(8), ZSTD(1))
) ENGINE = ReplacingMergeTree(last_seen)
PARTITION BY toDate(last_seen)
ORDER BY (tenant, cluster, source_id, incarnation)
TTL toDate(last_seen) + INTERVAL 90 DAY
SETTINGS ttl_only_drop_parts = 1, fsync_after_insert = 1, fsync_part_directory = 1,
  non_replicated_deduplication_window = 10000;

-- The loss ledger, one row per line of a frame's (or a stage's own) ledger; sums are totals.
CREATE TABLE IF NOT EXISTS tapio.ledger (
  tenant      LowCardinality(String),
  cluster     LowCardinality(String),
  node        LowCardinality(String),
  source_id   FixedString(16) CODEC(ZSTD(1)),
  incarnation UInt64 CODEC(ZSTD(1)),
  sequence    UInt64 CODEC(Delta(8), ZSTD(1)),
  since       DateTime64(6, 'UTC') CODEC(Delta(8), ZSTD(1)),
  until       DateTime64(6, 'UTC') CODEC(Delta(8), ZSTD(1)),
  stage       LowCardinality(String),
  fate        LowCardinality(String),
  subject     LowCardinality(String),
  reason      LowCardinality(String),
  count       UInt64 CODEC(ZSTD(1))
) ENGINE = MergeTree
PARTITION BY toDate(until)
ORDER BY (tenant, cluster, toStartOfMinute(until), source_id, stage, fate, subject, reason, until)
TTL toDate(until) + INTERVAL 90 DAY
SETTINGS ttl_only_drop_parts = 1, fsync_after_insert = 1, fsync_part_directory = 1,
  non_replicated_deduplication_window = 10000;

-- One row per revision of a finding; the newest revision of an id is the finding.
CREATE TABLE IF NOT EXISTS tapio.findings (
  tenant             LowCardinality(String),
  cluster            LowCardinality(String),
  id                 String CODEC(ZSTD(1)),
  revision           UInt32,
  incident_id        String CODEC(ZSTD(1)),
  state              LowCardinality(String),
  outcome            LowCardinality(String),
  severity           LowCardinality(String),
  rule               LowCardinality(String),
  rule_set_version   UInt64,
  signature          String CODEC(ZSTD(1)),
  announced_at       DateTime64(6, 'UTC') CODEC(Delta(8), ZSTD(1)),
  revised_at         DateTime64(6, 'UTC') CODEC(Delta(8), ZSTD(1)),
  first_symptom_at   DateTime64(6, 'UTC') CODEC(Delta(8), ZSTD(1)),
  found_after_micros UInt64,
  title              String CODEC(ZSTD(3)),
  entities           Array(LowCardinality(String)),
  names              Map(LowCardinality(String), String) CODEC(ZSTD(1)),
  document           String CODEC(ZSTD(3)),
  INDEX id_bloom id TYPE bloom_filter(0.01) GRANULARITY 1,
  INDEX entities_bloom entities TYPE bloom_filter(0.01) GRANULARITY 1
) ENGINE = MergeTree
PARTITION BY toDate(announced_at)
ORDER BY (tenant, announced_at, id, revision)
TTL toDate(announced_at) + INTERVAL 400 DAY
SETTINGS ttl_only_drop_parts = 1, fsync_after_insert = 1, fsync_part_directory = 1,
  non_replicated_deduplication_window = 10000;

-- Entities and the time in which they are known to have lived. Read with FINAL.
CREATE TABLE IF NOT EXISTS tapio.entities (
  tenant  LowCardinality(String),
  cluster LowCardinality(String),
  kind    LowCardinality(String),
  id      String CODEC(ZSTD(1)),
  names   Map(LowCardinality(String), String) CODEC(ZSTD(1)),
  since   DateTime64(6, 'UTC') CODEC(Delta(8), ZSTD(1)),
  until   DateTime64(6, 'UTC') CODEC(Delta(8), ZSTD(1)),
  INDEX id_bloom id TYPE bloom_filter(0.01) GRANULARITY 1
) ENGINE = ReplacingMergeTree(until)
PARTITION BY toDate(since)
ORDER BY (tenant, cluster, kind, id, since)
TTL toDate(since) + INTERVAL 400 DAY
SETTINGS ttl_only_drop_parts = 1, fsync_after_insert = 1, fsync_part_directory = 1,
  non_replicated_deduplication_window = 10000;

-- Timed edges between entities. Read with FINAL.
CREATE TABLE IF NOT EXISTS tapio.relations (
  tenant    LowCardinality(String),
  cluster   LowCardinality(String),
  kind      LowCardinality(String),
  from_kind LowCardinality(String),
  from_id   String CODEC(ZSTD(1)),
  to_kind   LowCardinality(String),
  to_id     String CODEC(ZSTD(1)),
  link      LowCardinality(String),
  since     DateTime64(6, 'UTC') CODEC(Delta(8), ZSTD(1)),
  until     DateTime64(6, 'UTC') CODEC(Delta(8), ZSTD(1))
) ENGINE = ReplacingMergeTree(until)
PARTITION BY toDate(since)
ORDER BY (tenant, cluster, kind, from_kind, from_id, to_kind, to_id, since)
TTL toDate(since) + INTERVAL 400 DAY
SETTINGS ttl_only_drop_parts = 1, fsync_after_insert = 1, fsync_part_directory = 1,
  non_replicated_deduplication_window = 10000;
