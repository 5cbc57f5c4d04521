// The page without a mouse: the list by j and k or the arrows, everything else by one letter where letters are on.

import { areLettersOn, filter, isHelpOpen, turnTheme, turnZone } from './state';

const rows = (): HTMLElement[] => [...document.querySelectorAll<HTMLElement>('.side a.row')].filter((row) => row.offsetParent !== null);

function move(by: number): void {
  const all = rows();
  const focused = all.indexOf(document.activeElement as HTMLElement);
  const current = focused >= 0 ? focused : all.findIndex((row) => row.getAttribute('aria-current') === 'true');
  const next = focused < 0 && current < 0 ? (by > 0 ? 0 : all.length - 1) : Math.min(Math.max(current + by, 0), all.length - 1);
  all[next]?.focus();
  all[next]?.scrollIntoView({ block: 'nearest' });
}

function back(): void {
  const field = document.getElementById('filter');
  if (document.activeElement === field) {
    filter.value = '';
    field?.blur();
    return;
  }
  const was = location.hash;
  if (was && was !== '#overview') {
    location.hash = '';
    // Where the person was in the list; the list may only now be shown.
    requestAnimationFrame(() => rows().find((row) => row.getAttribute('href') === was)?.focus());
  }
}

const arrows: Record<string, () => void> = {
  ArrowDown: () => move(1),
  ArrowUp: () => move(-1),
};

/** They can be turned off in the help, which has a button too. */
const letters: Record<string, () => void> = {
  j: () => move(1),
  k: () => move(-1),
  '/': () => document.getElementById('filter')?.focus(),
  o: () => (location.hash = 'overview'),
  t: turnTheme,
  u: turnZone,
  '?': () => (isHelpOpen.value = true),
};

export function listen(): void {
  addEventListener('keydown', (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || isHelpOpen.value) return;
    if (event.key === 'Escape') return back();
    const target = event.target as HTMLElement;
    const isField = target.matches('input, textarea, select, [contenteditable]');
    const isArrow = event.key.startsWith('Arrow');
    // Arrows scroll what is read; they move in the list where the focus is in it, or in the filter above it.
    if (isField ? event.key !== 'ArrowDown' : isArrow && !target.closest('.side')) return;
    const act = arrows[event.key] ?? (areLettersOn.value ? letters[event.key] : undefined);
    if (act) {
      event.preventDefault();
      act();
    }
  });
}
