-- What an analyst types: codes as the names that the API uses, ids as text. All are computed on read and stored nowhere.
--
-- Filter large spans on the stored column (kind, severity, trace_trace_id = unhex('...')): only that one has an index.
-- A test in central/store holds the names to schemas/src/intent.rs.

ALTER TABLE tapio.events ADD COLUMN IF NOT EXISTS kind_name String
  ALIAS transform(kind, [1, 2, 3, 4, 5, 6, 7, 8, 9],
    ['process', 'memory', 'syscall', 'network', 'request', 'metric', 'container', 'signal', 'agent'], 'unknown');

ALTER TABLE tapio.events ADD COLUMN IF NOT EXISTS severity_name String
  ALIAS transform(severity, [1, 2, 3, 4], ['notice', 'warning', 'error', 'critical'], 'info');

ALTER TABLE tapio.events ADD COLUMN IF NOT EXISTS trace_id String
  ALIAS if(trace_trace_id = toFixedString('', 16), '', lower(hex(trace_trace_id)));

ALTER TABLE tapio.events ADD COLUMN IF NOT EXISTS trace_link_name String
  ALIAS transform(trace_link, [1, 2], ['observed', 'inferred'], 'none');

ALTER TABLE tapio.events ADD COLUMN IF NOT EXISTS id String
  ALIAS concat(lower(hex(source_id)), '-', toString(incarnation), '-', toString(sequence), '-', toString(row));

ALTER TABLE tapio.events_per_minute ADD COLUMN IF NOT EXISTS kind_name String
  ALIAS transform(kind, [1, 2, 3, 4, 5, 6, 7, 8, 9],
    ['process', 'memory', 'syscall', 'network', 'request', 'metric', 'container', 'signal', 'agent'], 'unknown');

ALTER TABLE tapio.events_per_minute ADD COLUMN IF NOT EXISTS severity_name String
  ALIAS transform(severity, [1, 2, 3, 4], ['notice', 'warning', 'error', 'critical'], 'info');
