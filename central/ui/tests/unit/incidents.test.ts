import { readFileSync } from 'node:fs';

import { describe, expect, test } from 'vitest';

import { adopt, group, matches, stateWord } from '../../web/incidents';
import type { Finding } from '../../web/model';
import { finding, millis } from './story';

const one = (id: string, incident: string, more = {}) => finding({ id, incident_id: incident, ...more });

describe('incidents', () => {
  // Scenario: findings of three incidents, open and over, in no order.
  // Guarantees: those that share a cause stand together; open ones come first, then the latest.
  test('findings are grouped by cause', () => {
    const all = [
      one('f-1', 'i-old', { state: 'resolved', first_symptom_at: millis(1) }),
      one('f-2', 'i-a', { first_symptom_at: millis(2) }),
      one('f-3', 'i-b', { first_symptom_at: millis(3) }),
      one('f-4', 'i-a', { state: 'resolved', first_symptom_at: millis(9) }),
    ];
    const told = group(all).map((incident) => [incident.id, incident.state, incident.findings.map((member) => member.id)]);
    expect(told).toEqual([['i-b', 'open', ['f-3']], ['i-a', 'open', ['f-2', 'f-4']], ['i-old', 'resolved', ['f-1']]]);
  });

  // Scenario: the findings of the table that the aggregator's own test reads too.
  // Guarantees: they are grouped, told and ordered as the aggregator does it.
  test('findings are grouped as the aggregator does', () => {
    const table = JSON.parse(readFileSync(new URL('./grouping.json', import.meta.url), 'utf8')) as { findings: Partial<Finding>[]; incidents: unknown };
    const told = group(table.findings.map((more) => finding(more)));
    expect(told.map(({ id, state, findings }) => ({ id, state, findings: findings.map((one) => one.id) }))).toEqual(table.incidents);
  });

  // Scenario: a snapshot that is older than a revision that came in the stream.
  // Guarantees: the later revision stays.
  test('later revisions win, whichever comes first', () => {
    const later = one('f-1', 'i-1', { revision: 3 });
    const known = adopt(new Map(), [later]);
    expect(adopt(known, [one('f-1', 'i-1', { revision: 2 })]).get('f-1')).toBe(later);
    expect(adopt(known, [one('f-1', 'i-1', { revision: 4 })]).get('f-1')?.revision).toBe(4);
  });

  // Scenario: filters by name, pod, trace, rule and words that do not occur.
  // Guarantees: every word must fit, in whatever case.
  test('filters look at what a person knows', () => {
    const told = finding();
    for (const fits of ['', ' LEDGER ', 'payment-1', 'abab', 'container-oom shop', 'node-a']) expect(matches(told, fits), fits).toBe(true);
    for (const fails of ['nobody', 'ledger nobody']) expect(matches(told, fails), fails).toBe(false);
  });

  // Scenario: an open finding that its evidence no longer carries.
  // Guarantees: it is told apart.
  test('an uncertain finding is told as one', () => {
    const told = finding();
    expect(stateWord(told)).toBe('open');
    told.verdict.outcome = 'undetermined';
    expect(stateWord(told)).toBe('uncertain');
  });

  // Scenario: a node that shows the symptom is silent; the finding is closed for that; another was seen to recover.
  // Guarantees: none of them is told as the other, nor as open.
  test('what nobody observes is told apart', () => {
    const unobserved = [{ node: 'node-a', since: millis(500) }];
    expect(stateWord(finding({ unobserved }))).toBe('unobserved');
    expect(stateWord(finding({ state: 'resolved', resolution: 'unobserved', unobserved }))).toBe('closed');
    expect(stateWord(finding({ state: 'resolved', resolution: 'symptoms-stopped' }))).toBe('resolved');
  });
});
