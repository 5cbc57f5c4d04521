import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest';

import type { Status } from '../../web/model';
import { finding } from './story';

/** A stream that says what the test makes it say. */
class Stream {
  static readonly CLOSED = 2;
  static readonly all: Stream[] = [];
  readyState = 1;
  private readonly listeners = new Map<string, (event: unknown) => void>();

  constructor(readonly url: string) {
    Stream.all.push(this);
  }
  addEventListener(name: string, listener: (event: unknown) => void): void {
    this.listeners.set(name, listener);
  }
  close(): void {
    this.readyState = Stream.CLOSED;
  }
  say(name: string, data: unknown): void {
    this.listeners.get(name)?.({ data: JSON.stringify(data) });
  }
  static get last(): Stream {
    return Stream.all[Stream.all.length - 1] as Stream;
  }
}

const status = { now: 0, watermark: 0, open_findings: 700, nodes: {}, health: { reasons: [] } } as unknown as Status;

/** Whether the road carries answers; one that does not says nothing, not even that it is gone. */
let carries = true;
let leftOut = 0;
let asked: string[] = [];

const answer = (path: string): Promise<Response> => {
  const body = path.endsWith('incidents')
    ? { now: 0, cursor: 'c', incidents: [{ id: 'i-1', state: 'open', findings: [finding({ id: `f-${asked.length}` })] }], left_out: leftOut }
    : { now: 0, activity_secs: 600, step_secs: 5, nodes: [], left_out: 0 };
  return Promise.resolve(new Response(JSON.stringify(body)));
};

const ask = (path: string, { signal }: { signal: AbortSignal }): Promise<Response> => {
  asked.push(path);
  if (carries) return answer(path);
  return new Promise((_, refuse) => signal.addEventListener('abort', () => refuse(signal.reason)));
};

beforeEach(() => {
  vi.useFakeTimers();
  vi.resetModules();
  Stream.all.length = 0;
  asked = [];
  carries = true;
  leftOut = 0;
  vi.stubGlobal('EventSource', Stream);
  vi.stubGlobal('fetch', ask);
  vi.stubGlobal('location', { hash: '' });
  vi.stubGlobal('document', { visibilityState: 'visible' });
  vi.stubGlobal('matchMedia', () => ({ matches: true }));
});
afterEach(() => {
  vi.useRealTimers();
  vi.unstubAllGlobals();
});

async function fed() {
  const state = await import('../../web/state');
  (await import('../../web/feed')).start();
  await vi.advanceTimersByTimeAsync(10);
  return state;
}

/** Lets seconds go by, in which the stream speaks as the aggregator does, if it still can. */
async function seconds(count: number, speaks: boolean): Promise<void> {
  for (let second = 0; second < count; second += 1) {
    if (speaks) Stream.last.say('status', status);
    await vi.advanceTimersByTimeAsync(1_000);
  }
}

describe('the feed', () => {
  // Scenario: a road begins to swallow what it carries, without a connection being closed; later it carries again.
  // Guarantees: contact is said to be lost, the silent stream is let go and what is asked in vain is given up; new
  // attempts are made until one is answered, and then the page is as it was.
  test('silence makes it start again, though nothing fails', async () => {
    const state = await fed();
    const first = Stream.last;
    await seconds(5, true);
    expect([Stream.all.length, state.lostSince.value]).toEqual([1, null]);
    carries = false;
    await seconds(9, false);
    expect(state.lostSince.value).not.toBeNull();
    expect(first.readyState).toBe(Stream.CLOSED);
    await seconds(120, false);
    const tries = asked.filter((path) => path.endsWith('incidents')).length;
    expect(tries).toBeGreaterThan(3);
    expect(tries).toBeLessThan(12);
    carries = true;
    await seconds(40, false);
    expect(Stream.all.length).toBeGreaterThan(1);
    await seconds(10, true);
    expect(state.lostSince.value).toBeNull();
    const streams = Stream.all.length;
    await seconds(60, true);
    expect(Stream.all.length).toBe(streams);
    // What a stream that was let go had still to say is not heard.
    first.say('finding', finding({ id: 'f-late' }));
    expect(state.findings.value.has('f-late')).toBe(false);
  });

  // Scenario: the aggregator holds more findings than it tells; then it tells all.
  // Guarantees: as many are said to be open as the aggregator counts, and as the page holds where it holds all.
  test('open findings are counted where all of them are known', async () => {
    leftOut = 500;
    const state = await fed();
    await seconds(1, true);
    expect(state.openCount.value).toBe(700);
    leftOut = 0;
    Stream.last.say('missed', { count: 1 });
    await vi.advanceTimersByTimeAsync(10);
    expect(state.openCount.value).toBe(1);
    expect(state.stepSecs.value).toBe(5);
  });

  // Scenario: addresses typed by hand, one with a percent sign that encodes nothing.
  // Guarantees: they name a node all the same.
  test('an address that is no encoding breaks nothing', async () => {
    const state = await fed();
    for (const [hash, node] of [['node/%', '%'], ['node/a%20b', 'a b'], ['node/50%/x', '50%/x']] as const) {
      state.route.value = hash;
      expect(state.selected.value).toEqual({ node });
    }
  });
});
