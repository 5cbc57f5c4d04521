// What the aggregator tells, as its JSON has it. Times are microseconds since 1970, which a double holds exactly.

export type Micros = number;
export type Role = 'cause' | 'fault' | 'effect' | 'symptom';
export type Stance = 'supporting' | 'contradicting';
export type Link = 'none' | 'observed' | 'inferred';
export type FindingState = 'open' | 'resolved' | 'superseded';
export type Resolution = 'unspecified' | 'symptoms-stopped' | 'unobserved';
export type Severity = 'info' | 'notice' | 'warning' | 'error' | 'critical';

export interface Entity {
  kind: string;
  id: string;
}

export interface Pod {
  pod_uid: string;
  namespace: string;
  pod: string;
  workload: string;
  workload_kind: string;
  service: string;
  node: string;
}

export interface Named {
  entity: Entity;
  name: string;
  pod?: Pod;
}

export interface Interval {
  earliest: Micros;
  latest: Micros;
}

export type Value = boolean | number | string;

export interface Evidence {
  step: string;
  role: Role;
  stance: Stance;
  link: Link;
  intents: Record<string, number>;
  order: string[];
  subject: Entity;
  peer: Entity | null;
  first: Interval;
  last: Interval;
  count: number;
  probes: string[];
  traces: string[];
  events: string[];
  event_count: number;
  attributes: Record<string, Value>;
}

export interface LedgerEntry {
  stage: string;
  fate: string;
  subject: string;
  reason: string;
  count: number;
}

export interface Candidate {
  cause: Entity;
  rule: string;
  evidence_present: number;
  evidence_expected: number;
  reason: string;
}

export interface Change {
  at: Micros;
  intent: string;
  subject: Entity;
  event: string;
  what: string;
}

export interface Verdict {
  rule: string;
  rule_set: string;
  watermark: Micros;
  outcome: 'hypothesis' | 'undetermined' | 'finding';
  reason: string;
  severity: Severity;
  cause: Entity;
  evidence: Evidence[];
  evidence_present: number;
  evidence_expected: number;
  missing: { step: string; role: Role; why: string }[];
  candidates: Candidate[];
  changes: Change[];
  observed_since: Micros;
  symptom_seen_until: Micros;
  losses: { records: number; lost: number; by_reason: LedgerEntry[]; unknown_sources: string[] };
  clock_error: Micros;
  missing_probes: string[];
  signature: string;
}

export interface Line {
  step: string;
  role: Role;
  stance: Stance;
  at: Micros;
  text: string;
  basis: string;
}

export interface Call {
  from: Named;
  to: Named;
  link: Link;
}

export interface Revision {
  revision: number;
  at: Micros;
  state: FindingState;
  symptoms: number;
  effects: number;
}

export interface Finding {
  id: string;
  incident_id: string;
  tenant: string;
  cluster: string;
  revision: number;
  state: FindingState;
  resolution: Resolution;
  unobserved: { node: string; since: Micros }[];
  continuation: { count: number; last: Micros; counted_until: Micros; at_least: boolean };
  announced_at: Micros;
  revised_at: Micros;
  first_symptom_at: Micros;
  found_after: Micros;
  title: string;
  lines: Line[];
  recommended_action: string;
  names: Named[];
  verdict: Verdict;
  chain?: { calls: Call[]; left_out: number };
  history: Revision[];
}

export interface Incidents {
  now: Micros;
  cursor: string;
  incidents: { id: string; state: FindingState; findings: Finding[] }[];
  left_out: number;
}

export type NodeState = 'live' | 'silent' | 'disconnected';

export interface Step {
  at: Micros;
  records: number;
  lost: number;
}

export interface NodeStatus {
  node: string;
  state: NodeState;
  session_since: Micros;
  incarnation: number;
  agent_version: string;
  kernel_release: string;
  architecture: string;
  limits: Record<string, number>;
  capability: { probe: string; state: 'working' | 'disabled' | 'failed'; reason?: string }[];
  heard_at: Micros;
  heard_until: Micros;
  clock_error: Micros;
  records: number;
  lost: number;
  losses: LedgerEntry[];
  steps: Step[];
}

export interface Nodes {
  now: Micros;
  activity_secs: number;
  step_secs: number;
  nodes: NodeStatus[];
  left_out: number;
}

export interface Status {
  now: Micros;
  version: string;
  aggregator: string;
  cluster: string;
  tenant: string;
  rule_set: string;
  started_at: Micros;
  watermark: Micros;
  health: { status: 'healthy' | 'degraded'; reasons: string[] };
  nodes: {
    known: number;
    live: number;
    silent: number;
    disconnected: number;
    with_losses: number;
    with_failed_probes: number;
  };
  activity_secs: number;
  records: number;
  lost: number;
  open_findings: number;
}
