import { describe, expect, test } from 'vitest';

import { ago, bytes, clock, counted, grouped, length, offset, share } from '../../web/format';
import type { Status } from '../../web/model';
import { trust } from '../../web/trust';
import { ZERO, millis } from './story';

describe('quantities', () => {
  // Scenario: quantities of every size.
  // Guarantees: each in the unit that a person would choose; a small loss is not told as none.
  test('are readable', () => {
    expect([0, 1_234_567].map(grouped)).toEqual(['0', '1,234,567']);
    expect([40, 1_250, 640_000, 9_940_000, 119_000_000, 120_000_000, 8_000_000_000].map(length)).toEqual(['40 µs', '1.3 ms', '640 ms', '9.9 s', '119 s', '2 min', '2 h']);
    expect([512, 80_740_352, 1_073_741_824].map(bytes)).toEqual(['512 B', '77.0 MiB', '1.0 GiB']);
    expect([share(0, 10), share(1, 1_000_000), share(1, 200), share(1, 4)]).toEqual(['0 %', 'less than 0.01 %', '0.50 %', '25 %']);
    expect([offset(millis(-12_400), ZERO), offset(millis(320), ZERO), offset(ZERO, ZERO)]).toEqual(['−12 s', '+320 ms', '0']);
    expect([ago(ZERO, millis(400)), ago(ZERO, millis(5_900))]).toEqual(['just now', '5 s ago']);
    expect(clock(45_296_123_456, 'utc')).toBe('12:34:56.1');
    expect([counted(1, 'node'), counted(2, 'node')]).toEqual(['1 node', '2 nodes']);
  });
});

const good: Status = {
  now: ZERO,
  version: '0',
  aggregator: 'a',
  cluster: 'c',
  tenant: 't',
  rule_set: 'r',
  started_at: millis(-60_000),
  watermark: millis(-400),
  health: { status: 'healthy', reasons: [] },
  nodes: { known: 2, live: 2, silent: 0, disconnected: 0, with_losses: 0, with_failed_probes: 0 },
  activity_secs: 600,
  records: 1_000,
  lost: 0,
  open_findings: 0,
};

describe('trust', () => {
  const nodes = (more: Partial<Status['nodes']>) => ({ ...good, nodes: { ...good.nodes, ...more } });

  // Scenario: everything is well, and then each thing that a person must know is not.
  // Guarantees: only the first is good; what makes findings impossible is worse than what makes them doubtful.
  test('is only given where nothing is in the way', () => {
    const level = (status: Status | null) => trust(status, null, ZERO).level;
    expect(level(good)).toBe('good');
    expect(level(null)).toBe('doubt');
    const doubtful = [nodes({ live: 1, silent: 1 }), nodes({ live: 1, disconnected: 1 }), nodes({ with_failed_probes: 1 }), { ...good, lost: 1 }, { ...good, watermark: millis(-30_000) }];
    for (const status of doubtful) expect(level(status), JSON.stringify(status)).toBe('doubt');
    const degraded: Status = { ...good, health: { status: 'degraded', reasons: ['store: it is away'] } };
    for (const status of [nodes({ known: 0, live: 0 }), nodes({ live: 0, silent: 2 }), degraded]) expect(level(status)).toBe('bad');
    expect(trust(degraded, null, ZERO).doubts[0]).toContain('store: it is away');
    const lost = trust(good, millis(-8_000), ZERO);
    expect([lost.level, lost.headline]).toEqual(['bad', 'No contact with the aggregator for 8.0 s']);
  });
});
