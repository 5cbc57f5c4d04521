// Whether the system can be trusted right now, in one sentence: what a person asks before believing that all is quiet.

import { SECOND, counted, grouped, length, share } from './format';
import type { Micros, Status } from './model';

export type Level = 'good' | 'doubt' | 'bad';

export interface Trust {
  level: Level;
  headline: string;
  /** What is in the way, the worst first. */
  doubts: string[];
}

/** The engine is this far behind the present before it is worth a word: agents ship every second or so. */
const LAG_MAX: Micros = 15 * SECOND;

/** `connectedAt` is when the page last heard from the aggregator, or null while it hears from it. */
export function trust(status: Status | null, lostSince: Micros | null, now: Micros): Trust {
  if (lostSince !== null) {
    return {
      level: 'bad',
      headline: `No contact with the aggregator for ${length(Math.max(now - lostSince, SECOND))}`,
      doubts: ['What is shown here is what was known then. The page goes on trying.'],
    };
  }
  if (!status) return { level: 'doubt', headline: 'Asking the aggregator', doubts: [] };
  const { nodes, health } = status;
  const bad: string[] = [];
  const doubts: string[] = [];
  if (nodes.known === 0) bad.push('No node has connected yet, so nothing can be seen.');
  else if (nodes.live === 0) bad.push('No node is live, so nothing new can be seen.');
  bad.push(...health.reasons.map((reason) => `The aggregator is degraded: ${reason}.`));
  if (nodes.live > 0 && nodes.silent > 0) doubts.push(`${counted(nodes.silent, 'node')} connected but silent.`);
  if (nodes.live > 0 && nodes.disconnected > 0) doubts.push(`${counted(nodes.disconnected, 'node')} not connected.`);
  if (status.lost > 0) {
    doubts.push(`${grouped(status.lost)} of ${grouped(status.records)} records lost (${share(status.lost, status.records)}).`);
  }
  if (nodes.with_failed_probes > 0) doubts.push(`${counted(nodes.with_failed_probes, 'node')} with probes that do not work.`);
  const lag = status.now - status.watermark;
  if (nodes.live > 0 && lag > LAG_MAX) doubts.push(`Evidence is heard only up to ${length(lag)} ago.`);
  if (bad.length > 0) return { level: 'bad', headline: 'Do not rely on this now', doubts: [...bad, ...doubts] };
  if (doubts.length > 0) return { level: 'doubt', headline: 'Trust with care', doubts };
  return { level: 'good', headline: 'Everything is heard', doubts: [] };
}
