// A finding as the aggregator tells it, made by hand: shop calls payment calls ledger, and ledger is killed.

import type { Entity, Evidence, Finding, Named, Role } from '../../web/model';

export const ZERO = 1_700_000_000_000_000;
export const millis = (count: number): number => ZERO + count * 1_000;

export const container = (name: string): Entity => ({ kind: 'container', id: name.padStart(64, '0') });

export const named = (name: string): Named => ({
  entity: container(name),
  name,
  pod: { pod_uid: `uid-${name}`, namespace: 'shop', pod: `${name}-1`, workload: name, workload_kind: 'Deployment', service: name, node: 'node-a' },
});

export function evidence(step: string, role: Role, who: string, at: number, intents: Record<string, number>, more: Partial<Evidence> = {}): Evidence {
  const count = Object.values(intents).reduce((sum, one) => sum + one, 0);
  return {
    step,
    role,
    stance: 'supporting',
    link: 'observed',
    intents,
    order: Object.keys(intents),
    subject: container(who),
    peer: null,
    first: { earliest: millis(at) - 10, latest: millis(at) + 10 },
    last: { earliest: millis(at) - 10, latest: millis(at) + 10 },
    count,
    probes: ['payload'],
    traces: [],
    events: [`event-${step}`],
    event_count: count,
    attributes: {},
    ...more,
  };
}

export function finding(more: Partial<Finding> = {}): Finding {
  const told = [
    evidence('growth', 'cause', 'ledger', -10_000, { 'memory-growth': 3 }),
    evidence('kill', 'fault', 'ledger', -40, { 'oom-kill': 1 }),
    evidence('exit', 'fault', 'ledger', -20, { 'process-killed': 1 }),
    evidence('broken-calls', 'effect', 'payment', -1, { 'connection-reset': 4, 'connection-refused': 180 }, { peer: container('ledger'), traces: ['ab'.repeat(16)] }),
    evidence('symptom', 'symptom', 'shop', 0, { 'request-served-error': 195 }, { peer: container('client'), attributes: { 'network.status': 500 } }),
  ];
  const lines = told
    .filter((one) => one.step !== 'exit')
    .map(({ step, role, stance, first }) => ({ step, role, stance, at: (first.earliest + first.latest) / 2, text: `${step} happened`, basis: 'observed  probe' }));
  return {
    id: 'f-0000000000000001',
    incident_id: 'i-0000000000000001',
    tenant: 'default',
    cluster: 'demo',
    revision: 1,
    state: 'open',
    resolution: 'unspecified',
    unobserved: [],
    continuation: { count: 0, last: 0, counted_until: 0, at_least: false },
    announced_at: millis(300),
    revised_at: millis(300),
    first_symptom_at: ZERO,
    found_after: 300_000,
    title: 'shop is failing because ledger was killed for memory',
    lines,
    recommended_action: 'Raise its limit.',
    names: ['ledger', 'payment', 'shop'].map(named),
    verdict: {
      rule: 'container-oom',
      rule_set: '1',
      watermark: millis(200),
      outcome: 'finding',
      reason: '',
      severity: 'critical',
      cause: container('ledger'),
      evidence: told,
      evidence_present: 5,
      evidence_expected: 6,
      missing: [{ step: 'same-trace', role: 'effect', why: 'it was not there' }],
      candidates: [],
      changes: [],
      observed_since: millis(-60_000),
      symptom_seen_until: millis(200),
      losses: { records: 100, lost: 0, by_reason: [], unknown_sources: [] },
      clock_error: 40,
      missing_probes: [],
      signature: '',
    },
    history: [],
    ...more,
  };
}
