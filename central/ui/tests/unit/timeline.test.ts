import { describe, expect, test } from 'vitest';

import { layersOf, ticks, timeline } from '../../web/timeline';
import { ZERO, evidence, finding, millis } from './story';

describe('the timeline', () => {
  // Scenario: a finding whose steps were seen by several layers, one of them told with another.
  // Guarantees: each line is one entry, nothing of the evidence is lost, and each layer shows what it saw itself.
  test('every piece of evidence is in an entry and in its lanes', () => {
    const told = timeline(finding());
    expect(told.entries.map((entry) => [entry.number, entry.step, entry.evidence.map((one) => one.step)])).toEqual([
      [1, 'growth', ['growth']],
      [2, 'kill', ['kill', 'exit']],
      [3, 'broken-calls', ['broken-calls']],
      [4, 'symptom', ['symptom']],
    ]);
    const lanes = Object.fromEntries(told.lanes.map(({ layer, marks }) => [layer, marks.map((mark) => `${mark.number} ${mark.label}`)]));
    expect(lanes).toEqual({
      kernel: ['1 memory grows ×3', '2 OOM-killed; process killed'],
      network: ['3 refused ×180, reset ×4'],
      application: ['4 error answered ×195'],
      trace: ['3 1 trace, observed'],
      kubernetes: [],
    });
    expect(told.from).toBeLessThan(millis(-10_000));
    expect(told.until).toBeGreaterThan(ZERO);
  });

  // Scenario: marks of one lane that are nearly at the same time.
  // Guarantees: those of one entry are one, the others stand beside each other.
  test('marks at the same time are told apart', () => {
    const told = finding();
    const broken = told.verdict.evidence.find((one) => one.step === 'broken-calls');
    if (broken) broken.intents['request-unanswered'] = 2;
    const application = timeline(told).lanes.find(({ layer }) => layer === 'application')?.marks ?? [];
    expect(application.map((mark) => [mark.number, mark.beside])).toEqual([[3, 0], [4, 1]]);
  });

  // Scenario: intents of every kind.
  // Guarantees: each has the layer that a person looks for it in.
  test('intents have their layer', () => {
    const of = (intent: string) => layersOf(evidence('a', 'fault', 'b', 0, { [intent]: 1 }));
    expect(['oom-kill', 'file-vanished', 'address-in-use', 'container-failed'].map(of)).toEqual(Array(4).fill(['kernel']));
    expect(['connection-reset', 'listening-ended', 'retransmission'].map(of)).toEqual(Array(3).fill(['network']));
    expect(of('request-unanswered')).toEqual(['application']);
    expect(of('container-gone')).toEqual(['kubernetes']);
  });

  // Scenario: axes of a tenth of a second, of seconds and of minutes.
  // Guarantees: few round steps, the first symptom always among them.
  test('axes are round', () => {
    for (const length of [80, 3_000, 17_000, 240_000, 900_000]) {
      const found = ticks(millis(-length), millis(length / 5), ZERO, 6);
      expect(found).toContain(ZERO);
      expect(found.length).toBeGreaterThan(1);
      expect(found.length).toBeLessThanOrEqual(7);
    }
  });
});
