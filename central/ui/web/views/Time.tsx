import { ago, clock, day } from '../format';
import type { Micros } from '../model';
import { now, zone } from '../state';

/** A moment: wall time as logs have it, and how long ago where that is asked for. */
export function Time({ at, relative = false }: { at: Micros; relative?: boolean }) {
  if (at <= 0) return <span>never</span>;
  const isToday = day(at, zone.value) === day(now.value, zone.value);
  const other = zone.value === 'utc' ? 'local' : 'utc';
  const title = `${day(at, zone.value)} ${clock(at, zone.value)} ${zone.value === 'utc' ? 'UTC' : 'local time'}, ${clock(at, other)} ${other === 'utc' ? 'UTC' : 'local time'}`;
  return (
    <time class="time" dateTime={new Date(at / 1_000).toISOString()} title={title}>
      {isToday ? '' : `${day(at, zone.value)} `}
      {clock(at, zone.value)}
      {relative && <span class="quiet"> · {ago(at, now.value)}</span>}
    </time>
  );
}
