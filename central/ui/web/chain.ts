// The chain as a picture: who called whom, and where it broke. A graph of what the evidence and the calls say, and
// places for its boxes; drawing is somebody else's.

import { clock, counted, grouped, words } from './format';
import type { Zone } from './format';
import type { Call, Entity, Evidence, Finding, Link, Named, Role } from './model';

export interface Box {
  key: string;
  name: string;
  /** The pod, or what else tells two of one name apart. */
  detail: string;
  /** The gravest of what its evidence says; none of those that only stand by. */
  role: Role | null;
  /** What happened there, short. */
  what: string[];
  column: number;
  row: number;
}

export interface Arrow {
  key: string;
  from: string;
  to: string;
  link: Link;
  /** What broke, short; empty for a call of which nothing bad is known. */
  broken: string;
  /** Known by the rule alone: a call through others whom nobody saw. */
  isIndirect: boolean;
}

export interface Picture {
  boxes: Box[];
  arrows: Arrow[];
  columns: number;
  rows: number;
  /** Callers that are known and not drawn. */
  leftOut: number;
}

const BOXES_MAX = 12;
/** Lines of what happened in one box. */
const WHATS_MAX = 2;
const gravity: Record<Role, number> = { cause: 4, fault: 3, symptom: 2, effect: 1 };

/** Equal keys are one box: the containers of a pod that is restarted are the same to a person. */
function keyOf(entity: Entity, names: Map<string, Named>): string {
  const pod = names.get(`${entity.kind}:${entity.id}`)?.pod?.pod_uid;
  return pod ? `pod:${pod}` : `${entity.kind}:${entity.id}`;
}

/** The words of what happened; those of a picture are fewer than a sentence's. */
const short: Record<string, string> = {
  'oom-kill': 'OOM-killed',
  'memory-growth': 'memory grows',
  'process-killed': 'process killed',
  'process-failed': 'process exits with an error',
  'container-failed': 'exits with an error',
  'file-access-failed': 'file not found',
  'file-vanished': 'file is gone',
  'address-in-use': 'address in use',
  'listening-ended': 'stopped listening',
  'connection-refused': 'refused',
  'connection-reset': 'reset',
  'connection-timed-out': 'timed out',
  'connection-failed': 'failed',
  'request-unanswered': 'unanswered',
  'request-unfinished': 'unfinished',
  'request-served-error': 'error answered',
  'request-called-error': 'error received',
};

/** What happened, with counts: `refused ×180, reset ×4`. */
export function happened(evidence: Evidence): string {
  const intents = Object.entries(evidence.intents).sort((a, b) => b[1] - a[1]);
  return intents
    .map(([intent, count]) => `${short[intent] ?? words(intent)}${count > 1 ? ` ×${grouped(count)}` : ''}`)
    .join(', ');
}

function annotation(evidence: Evidence): string {
  const status = evidence.attributes['network.status'];
  if (status !== undefined) return `HTTP ${status}${evidence.count > 1 ? ` ×${grouped(evidence.count)}` : ''}`;
  const path = evidence.attributes['kernel.path'];
  const isMissed = evidence.intents['file-access-failed'] ?? evidence.intents['file-vanished'];
  if (isMissed && path) return `no ${String(path).split('/').pop()}`;
  const intent = Object.keys(evidence.intents)[0] ?? '';
  return short[intent] ?? words(intent);
}

/** The picture of a finding. */
export function picture(finding: Finding): Picture {
  const calls = finding.chain?.calls ?? [];
  const named = [...calls.flatMap(({ from, to }) => [from, to]), ...finding.names];
  const names = new Map(named.map((one) => [`${one.entity.kind}:${one.entity.id}`, one]));
  const boxes = new Map<string, Box>();
  const arrows = new Map<string, Arrow>();
  const box = (entity: Entity): Box => {
    const key = keyOf(entity, names);
    let known = boxes.get(key);
    if (!known) {
      const one = names.get(`${entity.kind}:${entity.id}`);
      const name = one?.name ?? `${entity.kind} ${entity.id.slice(0, 12)}`;
      const detail = one?.pod?.pod ?? '';
      known = { key, name, detail, role: null, what: [], column: 0, row: 0 };
      boxes.set(key, known);
    }
    return known;
  };
  const arrow = (from: Entity, to: Entity, link: Link): Arrow | null => {
    const [a, b] = [box(from).key, box(to).key];
    if (a === b) return null;
    const key = `${a} ${b}`;
    let known = arrows.get(key);
    if (!known) {
      known = { key, from: a, to: b, link, broken: '', isIndirect: false };
      arrows.set(key, known);
    } else if (link === 'observed') known.link = link;
    return known;
  };
  const supporting = finding.verdict.evidence.filter((evidence) => evidence.stance === 'supporting');
  for (const { from, to, link } of calls as Call[]) arrow(from.entity, to.entity, link);
  const faults = new Set<string>();
  for (const evidence of supporting) {
    const isCall = evidence.peer !== null && (evidence.role === 'effect' || isBrokenCall(evidence));
    if (isCall && evidence.peer) {
      const broken = arrow(evidence.subject, evidence.peer, evidence.link);
      if (broken && broken.broken === '') broken.broken = happened(evidence);
    }
    const subject = box(evidence.subject);
    if (!subject.role || gravity[evidence.role] > gravity[subject.role]) subject.role = evidence.role;
    const what = annotation(evidence);
    // What a call shows stands at its arrow.
    if (isCall || subject.what.includes(what)) continue;
    // What broke stands before what led to it, and that before what else was seen of the break.
    if (evidence.role === 'fault' && !faults.has(subject.key)) subject.what.unshift(what);
    else subject.what.push(what);
    if (evidence.role === 'fault') faults.add(subject.key);
  }
  for (const one of boxes.values()) one.what.splice(WHATS_MAX);
  connect(supporting, box, arrow, arrows);
  return place([...boxes.values()], [...arrows.values()], finding);
}

const isBrokenCall = (evidence: Evidence) =>
  Object.keys(evidence.intents).every((intent) => intent.startsWith('connection-') || intent === 'request-unanswered');

/** The rule ties a symptom to the fault over calls; where nobody saw them the picture says that they are not known. */
function connect(
  evidence: Evidence[],
  box: (entity: Entity) => Box,
  arrow: (from: Entity, to: Entity, link: Link) => Arrow | null,
  arrows: Map<string, Arrow>,
): void {
  const fault = evidence.find((one) => one.role === 'fault');
  if (!fault) return;
  const end = box(fault.subject).key;
  for (const symptom of evidence.filter((one) => one.role === 'symptom')) {
    if (reaches(box(symptom.subject).key, end, [...arrows.values()])) continue;
    const broken = evidence.find((one) => one.role === 'effect' && one.peer);
    const next = arrow(symptom.subject, broken?.subject ?? fault.subject, 'inferred');
    if (next) next.isIndirect = true;
  }
}

function reaches(from: string, to: string, arrows: Arrow[]): boolean {
  const met = new Set([from]);
  const open = [from];
  for (let key = open.pop(); key !== undefined; key = open.pop()) {
    if (key === to) return true;
    for (const arrow of arrows) {
      if (arrow.from === key && !met.has(arrow.to)) {
        met.add(arrow.to);
        open.push(arrow.to);
      }
    }
  }
  return false;
}

/** Columns by how many calls away the fault is, callers before what they call; rows with what is affected first. */
function place(boxes: Box[], arrows: Arrow[], finding: Finding): Picture {
  const isFault = (box: Box) => box.role === 'fault' || box.role === 'cause';
  const distance = new Map<string, number>();
  const open: [string, number][] = boxes.filter(isFault).map((box) => [box.key, 0]);
  for (let next = open.shift(); next; next = open.shift()) {
    const [key, hops] = next;
    if (distance.has(key)) continue;
    distance.set(key, hops);
    for (const arrow of arrows) if (arrow.to === key) open.push([arrow.from, hops + 1]);
  }
  const far = Math.max(0, ...distance.values());
  const rank = (box: Box) => (box.role ? -gravity[box.role] : 1);
  const drawn = [...boxes]
    .sort((a, b) => rank(a) - rank(b) || (distance.get(a.key) ?? far) - (distance.get(b.key) ?? far))
    .slice(0, BOXES_MAX);
  const rows = new Map<number, number>();
  for (const box of drawn) {
    box.column = far - (distance.get(box.key) ?? far);
    box.row = rows.get(box.column) ?? 0;
    rows.set(box.column, box.row + 1);
  }
  const first = Math.min(...drawn.map((box) => box.column), far);
  for (const box of drawn) box.column -= first;
  drawn.sort((a, b) => a.column - b.column || a.row - b.row);
  const keys = new Set(drawn.map((box) => box.key));
  return {
    boxes: drawn,
    arrows: arrows.filter((arrow) => keys.has(arrow.from) && keys.has(arrow.to)),
    columns: far - first + 1,
    rows: Math.max(1, ...rows.values()),
    leftOut: boxes.length - drawn.length + (finding.chain?.left_out ?? 0),
  };
}

/** The picture in words, for those who do not see it. */
export function inWords(picture: Picture, finding: Finding, zone: Zone): string[] {
  const name = new Map(picture.boxes.map((box) => [box.key, box.name]));
  const sentences = picture.boxes
    .filter((box) => box.role)
    .map((box) => `${box.name} is the ${box.role}${box.what.length > 0 ? `: ${box.what.join(', ')}` : ''}.`);
  for (const arrow of picture.arrows) {
    const verb = arrow.isIndirect ? 'calls, through others that were not seen,' : 'calls';
    const broken = arrow.broken ? `, and that broke: ${arrow.broken}` : '';
    const link = arrow.link === 'inferred' && !arrow.isIndirect ? ' (inferred)' : '';
    sentences.push(`${name.get(arrow.from)} ${verb} ${name.get(arrow.to)}${link}${broken}.`);
  }
  if (picture.leftOut > 0) sentences.push(`${counted(picture.leftOut, 'more call', 'more calls')} not drawn.`);
  sentences.push(`The first symptom was at ${clock(finding.first_symptom_at, zone)}.`);
  return sentences;
}
