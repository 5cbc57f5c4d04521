import { describe, expect, test } from 'vitest';

import { inWords, picture } from '../../web/chain';
import { container, evidence, finding, named } from './story';

const call = (from: string, to: string) => ({ from: named(from), to: named(to), link: 'observed' as const });

describe('the chain as a picture', () => {
  // Scenario: who called whom was seen, up to somebody who is not affected.
  // Guarantees: boxes stand in the order of the calls, the break is at its arrow, and roles are the gravest.
  test('calls that were seen lead to where it broke', () => {
    const drawn = picture(finding({ chain: { calls: [call('payment', 'ledger'), call('shop', 'payment'), call('front', 'shop')], left_out: 2 } }));
    const row = (box: (typeof drawn.boxes)[number]) => [box.name, box.column, box.role];
    expect(drawn.boxes.map(row)).toEqual([['front', 0, null], ['shop', 1, 'symptom'], ['payment', 2, 'effect'], ['ledger', 3, 'cause']]);
    expect(drawn.boxes.at(-1)?.what).toEqual(['OOM-killed', 'memory grows']);
    expect(drawn.boxes[1]?.what).toEqual(['HTTP 500 ×195']);
    const broken = drawn.arrows.filter((arrow) => arrow.broken);
    expect(broken.map((arrow) => [arrow.from, arrow.to, arrow.broken])).toEqual([['pod:uid-payment', 'pod:uid-ledger', 'refused ×180, reset ×4']]);
    expect(drawn.arrows.some((arrow) => arrow.isIndirect)).toBe(false);
    expect([drawn.columns, drawn.leftOut]).toEqual([4, 2]);
  });

  // Scenario: nothing is known of the calls but what the evidence says.
  // Guarantees: the symptom is tied to the break by an arrow that says that it is not known.
  test('what nobody saw is said to be unknown', () => {
    const drawn = picture(finding());
    const indirect = drawn.arrows.filter((arrow) => arrow.isIndirect);
    expect(indirect.map((arrow) => [arrow.from, arrow.to, arrow.link])).toEqual([['pod:uid-shop', 'pod:uid-payment', 'inferred']]);
    expect(inWords(drawn, finding(), 'utc')).toContain('shop calls, through others that were not seen, payment.');
  });

  // Scenario: a pod is restarted, each time as another container; callers call each other in a ring.
  // Guarantees: a pod is one box, and a ring ends.
  test('a pod is one box and a ring ends', () => {
    const again = { ...named('ledger'), entity: container('ledger-2') };
    const calls = [call('payment', 'ledger'), { ...call('payment', 'ledger'), to: again }, call('ledger', 'payment'), call('shop', 'payment')];
    const drawn = picture(finding({ chain: { calls, left_out: 0 } }));
    expect(drawn.boxes.map((box) => box.name).sort()).toEqual(['ledger', 'payment', 'shop']);
  });

  // Scenario: more callers than a picture can hold.
  // Guarantees: those with evidence are drawn, the others are counted.
  test('what does not fit is counted', () => {
    const calls = [call('payment', 'ledger'), call('shop', 'payment')];
    for (let number = 0; number < 30; number += 1) calls.push(call(`caller-${number}`, 'ledger'));
    const drawn = picture(finding({ chain: { calls, left_out: 0 } }));
    expect(drawn.boxes.length).toBe(12);
    expect(drawn.boxes.filter((box) => box.role).length).toBe(3);
    expect(drawn.leftOut).toBe(21);
  });

  // Scenario: the symptom is the broken call itself.
  // Guarantees: it is drawn once, as a broken call.
  test('a symptom that is a broken call is one arrow', () => {
    const told = finding();
    const broken = { 'connection-refused': 7 };
    told.verdict.evidence = [
      evidence('kill', 'fault', 'ledger', -40, { 'oom-kill': 1 }),
      evidence('broken-calls', 'effect', 'shop', 0, broken, { peer: container('ledger') }),
      evidence('symptom', 'symptom', 'shop', 0, broken, { peer: container('ledger') }),
    ];
    const drawn = picture(told);
    expect(drawn.arrows.length).toBe(1);
    expect(drawn.boxes.map((box) => [box.name, box.what])).toEqual([['shop', []], ['ledger', ['OOM-killed']]]);
  });
});
