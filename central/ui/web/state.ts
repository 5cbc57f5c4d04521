// What the page knows and what the person chose; everything that is drawn follows from here.

import { computed, signal } from '@preact/signals';

import type { Zone } from './format';
import { group, matches } from './incidents';
import type { Finding, Micros, NodeStatus, Status } from './model';
import { trust as judge } from './trust';

export const findings = signal<ReadonlyMap<string, Finding>>(new Map());
export const leftOut = signal(0);
export const status = signal<Status | null>(null);
export const nodes = signal<NodeStatus[]>([]);
export const nodesLeftOut = signal(0);
/** How much time a step of the nodes' activity is. */
export const stepSecs = signal(10);
/** Since when nothing came from the aggregator; null while it speaks. */
export const lostSince = signal<Micros | null>(null);
/** Whether the first answer has come. */
export const isLoaded = signal(false);
/** How far the aggregator's clock is before this machine's. */
export const clockSkew = signal<Micros>(0);
/** The aggregator's time, moved on every second. */
export const now = signal<Micros>(Date.now() * 1_000);
/** What was announced last, for those who hear the page. */
export const announced = signal('');

export const filter = signal('');
export const route = signal(location.hash.slice(1));
export const isHelpOpen = signal(false);
export const isWide = signal(matchMedia('(min-width: 60rem)').matches);

type Theme = 'system' | 'light' | 'dark';
export const theme = signal<Theme>(stored('tapio-theme', ['light', 'dark']) ?? 'system');
export const zone = signal<Zone>(stored('tapio-zone', ['utc', 'local']) ?? 'utc');
/** Whether single characters are shortcuts; speech input types them by chance (WCAG 2.1.4). */
export const areLettersOn = signal(stored('tapio-letters', ['off']) === null);

export const incidents = computed(() =>
  group([...findings.value.values()].filter((finding) => matches(finding, filter.value))),
);
export const openIncidents = computed(() => incidents.value.filter((incident) => incident.state === 'open'));
export const pastIncidents = computed(() => incidents.value.filter((incident) => incident.state !== 'open'));
/** All that are open: where the page does not hold them all, as many as the aggregator counts. */
export const openCount = computed(() => {
  let held = 0;
  for (const finding of findings.value.values()) if (finding.state === 'open') held += 1;
  return leftOut.value > 0 ? Math.max(held, status.value?.open_findings ?? 0) : held;
});

/** As the address has it where it is no encoding: addresses are also typed by hand. */
function decoded(text: string): string {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

/** What is looked at: a finding, a node, or (where there is room for it beside the list) the latest open finding. */
export const selected = computed(() => {
  const [kind, ...rest] = route.value.split('/');
  if (kind === 'node') return { node: decoded(rest.join('/')) };
  const id = kind ?? '';
  if (id === 'overview') return {};
  // An abbreviated id, as the command shows it, is enough.
  const wanted = id ? [...findings.value.values()].find((finding) => finding.id.startsWith(id)) : undefined;
  if (wanted || id) return { finding: wanted, id };
  const first = isWide.value ? openIncidents.value[0]?.findings[0] : undefined;
  return first ? { finding: first, id: first.id } : {};
});

export const trust = computed(() => judge(status.value, lostSince.value, now.value));

function stored<T extends string>(key: string, allowed: T[]): T | null {
  try {
    const value = localStorage.getItem(key);
    return allowed.find((one) => one === value) ?? null;
  } catch {
    return null;
  }
}

function store(key: string, value: string): void {
  try {
    localStorage.setItem(key, value);
  } catch {
    // Storage may be forbidden; the choice then holds for this visit.
  }
}

/** The next of system, light, dark. */
export function turnTheme(): void {
  const next = { system: 'dark', dark: 'light', light: 'system' } as const;
  theme.value = next[theme.value];
  if (theme.value === 'system') delete document.documentElement.dataset['theme'];
  else document.documentElement.dataset['theme'] = theme.value;
  store('tapio-theme', theme.value);
}

export function turnZone(): void {
  zone.value = zone.value === 'utc' ? 'local' : 'utc';
  store('tapio-zone', zone.value);
}

export function turnLetters(): void {
  areLettersOn.value = !areLettersOn.value;
  store('tapio-letters', areLettersOn.value ? 'on' : 'off');
}
