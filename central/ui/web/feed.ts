// What comes from the aggregator: a snapshot, then each change as it happens, for as long as the page is open.

import { batch } from '@preact/signals';

import { adopt, stateWord } from './incidents';
import type { Finding, Incidents, Micros, Nodes, Status } from './model';
import {
  announced,
  clockSkew,
  findings,
  isLoaded,
  leftOut,
  lostSince,
  nodes,
  nodesLeftOut,
  now,
  status,
  stepSecs,
} from './state';

const CLOCK_MILLIS = 1_000;
const NODES_MILLIS = 5_000;
/** The status comes every two seconds: without it for so long, there is no contact. */
const SILENCE_MILLIS = 7_000;
/** An answer that takes longer does not come. */
const ANSWER_MILLIS_MAX = 20_000;
const RETRY_MILLIS_MIN = 1_000;
const RETRY_MILLIS_MAX = 15_000;
/** Findings that the page holds; the aggregator holds more. */
const FINDINGS_MAX = 500;

/** How the page is fed at the moment: aborted when it starts anew, and with it whatever it still asks. */
let attempt = new AbortController();
let source: EventSource | null = null;
let heardAt = Date.now();
let begunAt = Date.now();
let retryMillis = RETRY_MILLIS_MIN;
let retry: ReturnType<typeof setTimeout> | null = null;

const localNow = (): Micros => Date.now() * 1_000;

async function get<T>(path: string, { signal }: AbortController): Promise<T> {
  const limits = AbortSignal.any([signal, AbortSignal.timeout(ANSWER_MILLIS_MAX)]);
  const response = await fetch(path, { cache: 'no-store', headers: { accept: 'application/json' }, signal: limits });
  if (!response.ok) throw new Error(`${path}: ${response.status}`);
  return (await response.json()) as T;
}

function heard(): void {
  heardAt = Date.now();
  retryMillis = RETRY_MILLIS_MIN;
  lostSince.value = null;
}

/** The oldest that are over go first. */
function bounded(all: Map<string, Finding>): Map<string, Finding> {
  if (all.size <= FINDINGS_MAX) return all;
  const rank = (finding: Finding) => (finding.state === 'open' ? Infinity : finding.revised_at);
  const kept = [...all.values()].sort((a, b) => rank(b) - rank(a)).slice(0, FINDINGS_MAX);
  leftOut.value += all.size - kept.length;
  return new Map(kept.map((finding) => [finding.id, finding]));
}

/** Lets go of everything that is under way. */
function stop(): void {
  if (retry !== null) clearTimeout(retry);
  retry = null;
  attempt.abort();
  source?.close();
  source = null;
}

/** Reads everything anew, then follows what changes. */
async function begin(): Promise<void> {
  stop();
  const own = new AbortController();
  attempt = own;
  begunAt = Date.now();
  try {
    const snapshot = await get<Incidents>('api/v1/incidents', own);
    if (own.signal.aborted) return;
    batch(() => {
      findings.value = adopt(new Map(), snapshot.incidents.flatMap((incident) => incident.findings));
      leftOut.value = snapshot.left_out;
      isLoaded.value = true;
      heard();
    });
    follow(snapshot.cursor);
    await readNodes(own);
  } catch {
    if (!own.signal.aborted) again();
  }
}

function again(): void {
  stop();
  lostSince.value ??= heardAt * 1_000 + clockSkew.value;
  retry = setTimeout(() => void begin(), retryMillis);
  retryMillis = Math.min(retryMillis * 2, RETRY_MILLIS_MAX);
}

function follow(cursor: string): void {
  const stream = new EventSource(`api/v1/updates?after=${encodeURIComponent(cursor)}`);
  source = stream;
  const on = <T>(name: string, take: (data: T) => void) =>
    stream.addEventListener(name, (event) => {
      if (source !== stream) return;
      heard();
      take(JSON.parse((event as MessageEvent<string>).data) as T);
    });
  on<Finding>('finding', (finding) => {
    const before = findings.value.get(finding.id);
    findings.value = bounded(adopt(findings.value, [finding]));
    if (!before) announced.value = `New finding: ${finding.title}`;
    else if (stateWord(before) !== stateWord(finding)) announced.value = `Now ${stateWord(finding)}: ${finding.title}`;
  });
  on<Status>('status', (told) => {
    status.value = told;
    clockSkew.value = told.now - localNow();
    now.value = told.now;
  });
  // What could not be told is read.
  on<unknown>('missed', () => void begin());
  on<unknown>('end', again);
  stream.addEventListener('error', () => {
    // The browser comes back by itself, with the place where it was, unless it was refused.
    if (stream.readyState === EventSource.CLOSED && source === stream) again();
  });
}

async function readNodes(own: AbortController): Promise<void> {
  const told = await get<Nodes>('api/v1/nodes', own);
  if (own.signal.aborted) return;
  nodes.value = told.nodes;
  nodesLeftOut.value = told.left_out;
  stepSecs.value = told.step_secs;
}

/** A road that is gone need not say so: on a connection that is open at this end only, nothing comes and nothing fails. */
function checkSilence(): void {
  const silent = Date.now() - heardAt > SILENCE_MILLIS;
  if (silent) lostSince.value ??= heardAt * 1_000 + clockSkew.value;
  // A new attempt has time of its own: to answer, and then for its stream to speak.
  const patience = source === null ? ANSWER_MILLIS_MAX : SILENCE_MILLIS;
  if (retry === null && Date.now() - Math.max(heardAt, begunAt) > patience) again();
}

/** Starts, and goes on for as long as the page is open. */
export function start(): void {
  void begin();
  setInterval(() => {
    now.value = localNow() + clockSkew.value;
    checkSilence();
  }, CLOCK_MILLIS);
  setInterval(() => {
    // What is not looked at need not be asked for; a failure shows in the stream.
    if (document.visibilityState === 'visible' && lostSince.value === null) readNodes(attempt).catch(() => undefined);
  }, NODES_MILLIS);
}
