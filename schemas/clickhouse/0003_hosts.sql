-- What a source says of itself beside its capability. Empty is unknown: its agent is older, or has not said it yet.

ALTER TABLE tapio.sources ADD COLUMN IF NOT EXISTS agent_version LowCardinality(String) AFTER capability;

ALTER TABLE tapio.sources ADD COLUMN IF NOT EXISTS kernel_release LowCardinality(String) AFTER agent_version;

ALTER TABLE tapio.sources ADD COLUMN IF NOT EXISTS architecture LowCardinality(String) AFTER kernel_release;

-- What the agent's configuration allows it: an object of numbers by name, the unit at the name's end.
ALTER TABLE tapio.sources ADD COLUMN IF NOT EXISTS limits String CODEC(ZSTD(1)) AFTER architecture;
