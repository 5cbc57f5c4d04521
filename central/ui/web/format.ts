// Quantities and times as a person reads them; the same units and words as the `tapio` command's.

import type { Micros } from './model';

export type Zone = 'utc' | 'local';

export const SECOND: Micros = 1_000_000;

const pad = (number: number, width = 2) => String(number).padStart(width, '0');

/** A number with its thousands apart. */
export function grouped(number: number): string {
  return String(Math.round(number)).replace(/\B(?=(\d{3})+(?!\d))/g, ',');
}

/** `one node`, `3 nodes`. */
export function counted(number: number, noun: string, plural = `${noun}s`): string {
  return `${grouped(number)} ${number === 1 ? noun : plural}`;
}

/** A short length of time. */
export function length(micros: Micros): string {
  const size = Math.abs(micros);
  if (size < 1_000) return `${Math.round(size)} µs`;
  if (size < SECOND) return `${(size / 1_000).toFixed(size < 10_000 ? 1 : 0)} ms`;
  if (size < 10 * SECOND) return `${(size / SECOND).toFixed(1)} s`;
  const seconds = Math.floor(size / SECOND);
  if (seconds < 120) return `${seconds} s`;
  if (seconds < 7_200) return `${Math.floor(seconds / 60)} min`;
  if (seconds < 172_800) return `${Math.floor(seconds / 3_600)} h`;
  return `${Math.floor(seconds / 86_400)} d`;
}

/** How long ago; what is now or, by a clock's error, in the future is just now. */
export function ago(at: Micros, now: Micros): string {
  return now - at < SECOND ? 'just now' : `${length(Math.floor((now - at) / SECOND) * SECOND).replace('.0', '')} ago`;
}

/** A distance from a moment: `−12.4 s`, `+320 ms`. */
export function offset(at: Micros, from: Micros): string {
  if (at === from) return '0';
  return `${at < from ? '−' : '+'}${length(at - from)}`;
}

/** Wall time with tenths of a second. */
export function clock(at: Micros, zone: Zone): string {
  if (at <= 0) return '--:--:--.-';
  const date = new Date(Math.floor(at / 1_000));
  const [hours, minutes, seconds] =
    zone === 'utc'
      ? [date.getUTCHours(), date.getUTCMinutes(), date.getUTCSeconds()]
      : [date.getHours(), date.getMinutes(), date.getSeconds()];
  return `${pad(hours)}:${pad(minutes)}:${pad(seconds)}.${Math.floor((at % SECOND) / 100_000)}`;
}

/** The day, for what is not of today. */
export function day(at: Micros, zone: Zone): string {
  const date = new Date(Math.floor(at / 1_000));
  return zone === 'utc'
    ? `${date.getUTCFullYear()}-${pad(date.getUTCMonth() + 1)}-${pad(date.getUTCDate())}`
    : `${date.getFullYear()}-${pad(date.getMonth() + 1)}-${pad(date.getDate())}`;
}

/** Bytes in powers of 1024. */
export function bytes(count: number): string {
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB'];
  let size = count;
  let unit = 0;
  while (size >= 1_024 && unit < units.length - 1) {
    size /= 1_024;
    unit += 1;
  }
  return `${unit === 0 || size >= 100 ? Math.round(size) : size.toFixed(1)} ${units[unit]}`;
}

/** A share of a whole; a loss that is small is not told as none. */
export function share(part: number, whole: number): string {
  if (part === 0 || whole === 0) return '0 %';
  const percent = (part / whole) * 100;
  if (percent < 0.01) return 'less than 0.01 %';
  return `${percent < 1 ? percent.toFixed(2) : percent < 10 ? percent.toFixed(1) : Math.round(percent)} %`;
}

/** So much of an id as tells a fleet's findings apart, as the `tapio` command takes it. */
export const shortId = (id: string): string => id.slice(0, 10);

/** A machine's word as a person's: `unknown_source` and `ring-full` become words. */
export const words = (name: string): string => name.replace(/[-_]/g, ' ');
