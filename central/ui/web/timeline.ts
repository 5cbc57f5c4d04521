// Evidence across layers, over time: which layer saw what, when, and how the steps of the story are numbered.

import type { Evidence, Finding, Interval, Line, Link, Micros, Role, Stance } from './model';
import { happened } from './chain';
import { counted } from './format';

export type Layer = 'kernel' | 'network' | 'application' | 'trace' | 'kubernetes';

export const LAYERS: readonly Layer[] = ['kernel', 'network', 'application', 'trace', 'kubernetes'];

/** One line of the story. */
export interface Entry {
  /** As it is called in story and lanes, from 1. */
  number: number;
  step: string;
  role: Role;
  stance: Stance;
  link: Link;
  at: Micros;
  until: Micros;
  text: string;
  basis: string;
  layers: Layer[];
  /** The evidence that it rests on; more than one where the rule tells steps together. */
  evidence: Evidence[];
}

/** A mark in a lane. */
export interface Mark {
  number: number;
  from: Micros;
  until: Micros;
  /** How many marks of its lane stand at the same place before it. */
  beside: number;
  kind: Role | 'against' | 'change';
  label: string;
}

export interface Timeline {
  entries: Entry[];
  lanes: { layer: Layer; marks: Mark[] }[];
  from: Micros;
  until: Micros;
}

/** Marks that are nearer than this share of the time that is shown cover each other. */
const NEAR_SHARE = 0.025;

const middle = (interval: Interval): Micros => Math.floor((interval.earliest + interval.latest) / 2);

/** The layer that an intent speaks of. */
export function layerOf(intent: string): Layer {
  if (/^(connection-|reset-|retransmission|listening)/.test(intent)) return 'network';
  if (intent.startsWith('request-')) return 'application';
  if (/^(container-(seen|gone)|pod-|agent-)/.test(intent)) return 'kubernetes';
  return 'kernel';
}

/** The layers of one piece of evidence: of its intents, and of traces where it belongs to some. */
export function layersOf(evidence: Evidence): Layer[] {
  const layers = new Set(Object.keys(evidence.intents).map(layerOf));
  if (evidence.traces.length > 0) layers.add('trace');
  return LAYERS.filter((layer) => layers.has(layer));
}

/** The timeline of a finding. */
export function timeline(finding: Finding): Timeline {
  const { evidence, changes } = finding.verdict;
  const taken = new Set<Evidence>();
  const entries: Entry[] = finding.lines.map((line, place) => {
    const own = evidence.filter((one) => one.step === line.step && isAt(one, line) && !taken.has(one)).slice(0, 1);
    own.forEach((one) => taken.add(one));
    return entry(place + 1, line, own);
  });
  for (const one of evidence) {
    if (taken.has(one)) continue;
    // A step without a line of its own is told with another: the one of its role and entity that is nearest.
    const beside = entries
      .filter((known) => known.role === one.role && known.stance === one.stance)
      .sort((a, b) => Math.abs(a.at - middle(one.first)) - Math.abs(b.at - middle(one.first)))[0];
    if (beside) {
      beside.evidence.push(one);
      beside.layers = LAYERS.filter((layer) => beside.layers.includes(layer) || layersOf(one).includes(layer));
      beside.until = Math.max(beside.until, middle(one.last));
    }
  }
  const times = entries.flatMap((known) => [known.at, known.until]);
  times.push(finding.first_symptom_at, ...changes.map((change) => change.at));
  const from = Math.min(...times);
  const until = Math.max(...times);
  const room = Math.max((until - from) * 0.04, 50_000);
  const told = { entries, lanes: lanes(finding, entries), from: from - room, until: until + room };
  const near = (told.until - told.from) * NEAR_SHARE;
  for (const lane of told.lanes) lane.marks = spread(lane.marks, near);
  return told;
}

function isAt(evidence: Evidence, line: Line): boolean {
  return evidence.stance === line.stance && Math.abs(middle(evidence.first) - line.at) <= 1;
}

function entry(number: number, line: Line, evidence: Evidence[]): Entry {
  const one = evidence[0];
  const [link = 'none', ...basis] = line.basis.split(/\s{2,}/);
  return {
    number,
    step: line.step,
    role: line.role,
    stance: line.stance,
    link: one?.link ?? (link as Link),
    at: line.at,
    until: one ? Math.max(line.at, middle(one.last)) : line.at,
    text: line.text,
    basis: basis.join(', '),
    layers: one ? layersOf(one) : [],
    evidence,
  };
}

/** Orders the marks of a lane, joins those of one entry that would cover each other, and counts the others that would. */
function spread(marks: Mark[], near: Micros): Mark[] {
  const apart: Mark[] = [];
  for (const mark of [...marks].sort((a, b) => a.from - b.from || a.number - b.number)) {
    const before = apart.filter((other) => mark.from - other.from < near);
    const same = before.find((other) => other.number === mark.number && other.kind === mark.kind);
    if (same) {
      same.until = Math.max(same.until, mark.until);
      if (!same.label.includes(mark.label)) same.label += `; ${mark.label}`;
    } else {
      apart.push({ ...mark, beside: before.length });
    }
  }
  return apart;
}

function lanes(finding: Finding, entries: Entry[]): Timeline['lanes'] {
  const marks = new Map<Layer, Mark[]>(LAYERS.map((layer) => [layer, []]));
  for (const { number, evidence } of entries) {
    for (const one of evidence) {
      for (const layer of layersOf(one)) {
        const intents = Object.fromEntries(Object.entries(one.intents).filter(([name]) => layerOf(name) === layer));
        const label = layer === 'trace' ? `${counted(one.traces.length, 'trace')}, ${one.link}` : happened({ ...one, intents });
        marks.get(layer)?.push({
          number,
          from: middle(one.first),
          until: middle(one.last),
          beside: 0,
          kind: one.stance === 'contradicting' ? 'against' : one.role,
          label,
        });
      }
    }
  }
  for (const change of finding.verdict.changes) {
    marks.get('kubernetes')?.push({
      number: 0,
      from: change.at,
      until: change.at,
      beside: 0,
      kind: 'change',
      label: change.what,
    });
  }
  return LAYERS.map((layer) => ({ layer, marks: marks.get(layer) ?? [] }));
}

/** Round distances from the first symptom for an axis, at most `most` of them. */
export function ticks(from: Micros, until: Micros, zero: Micros, most: number): Micros[] {
  const steps = [1, 2, 5, 10, 20, 50, 100, 200, 500].map((millis) => millis * 1_000);
  steps.push(...[1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900].map((seconds) => seconds * 1_000_000));
  const step = steps.find((one) => (until - from) / one <= most) ?? until - from;
  const found: Micros[] = [];
  for (let at = zero - Math.floor((zero - from) / step) * step; at <= until; at += step) found.push(at);
  return found;
}
