// Findings by incident: those that share a cause. Open ones first, the latest first.

import type { Finding, FindingState, Micros } from './model';

export interface Incident {
  id: string;
  state: FindingState;
  since: Micros;
  findings: Finding[];
}

/** Keeps the later revision of each finding; answers of different ages may arrive in any order. */
export function adopt(known: ReadonlyMap<string, Finding>, arrived: Iterable<Finding>): Map<string, Finding> {
  const all = new Map(known);
  for (const finding of arrived) {
    const before = all.get(finding.id);
    if (!before || before.revision <= finding.revision) all.set(finding.id, finding);
  }
  return all;
}

const order: Record<FindingState, number> = { open: 0, superseded: 1, resolved: 1 };

function byStateAndTime(a: { state: FindingState; since: Micros }, b: { state: FindingState; since: Micros }): number {
  return order[a.state] - order[b.state] || b.since - a.since;
}

/** An incident is what the weightiest of its findings is: what was resolved is not told as replaced. */
const weight: Record<FindingState, number> = { superseded: 0, resolved: 1, open: 2 };

/** The incidents, open ones first, the latest first; `aggregator/src/dashboard/grouping.rs` does the same. */
export function group(findings: Iterable<Finding>): Incident[] {
  const incidents = new Map<string, Incident>();
  for (const finding of findings) {
    const known = incidents.get(finding.incident_id);
    if (!known) {
      const { incident_id: id, state, first_symptom_at: since } = finding;
      incidents.set(id, { id, state, since, findings: [finding] });
      continue;
    }
    known.findings.push(finding);
    known.since = Math.min(known.since, finding.first_symptom_at);
    if (weight[finding.state] > weight[known.state]) known.state = finding.state;
  }
  const all = [...incidents.values()];
  for (const incident of all) {
    incident.findings.sort(
      (a, b) => order[a.state] - order[b.state] || b.first_symptom_at - a.first_symptom_at || (a.id < b.id ? -1 : 1),
    );
  }
  return all.sort((a, b) => byStateAndTime(a, b) || (a.id < b.id ? -1 : 1));
}

/** Whether every word of the filter occurs in what is told of a finding. */
export function matches(finding: Finding, filter: string): boolean {
  const wanted = filter.toLowerCase().split(/\s+/).filter(Boolean);
  if (wanted.length === 0) return true;
  const pods = finding.names.flatMap(({ name, pod }) => [name, pod?.pod, pod?.namespace, pod?.node, pod?.workload]);
  const told = [
    finding.title,
    finding.id,
    finding.incident_id,
    finding.state,
    finding.verdict.rule,
    finding.verdict.severity,
    ...finding.lines.map((line) => line.text),
    ...finding.verdict.evidence.flatMap((evidence) => evidence.traces),
    ...pods,
  ];
  const text = told.join('\n').toLowerCase();
  return wanted.every((word) => text.includes(word));
}

/**
 * What a person must know of a finding before its sentence: an open one that its evidence no longer carries or that
 * nobody observes, and one that was closed without having been seen to recover.
 */
export function stateWord(finding: Finding): string {
  if (finding.resolution === 'unobserved') return 'closed';
  if (finding.state === 'open' && finding.verdict.outcome !== 'finding') return 'uncertain';
  if (finding.state === 'open' && finding.unobserved.length > 0) return 'unobserved';
  return finding.state;
}
