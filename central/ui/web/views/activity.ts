// Records and losses of nodes as the series of a chart.

import type { Micros, NodeStatus } from '../model';
import type { Marker, Series } from './Chart';

export interface Activity {
  times: number[];
  series: Series[];
  markers: Marker[];
  unit: string;
}

/** Per second, summed over the nodes; what nobody told of a step is nothing, not zero. */
export function activity(nodes: NodeStatus[], stepSecs: number, markers: { at: Micros; label: string }[]): Activity {
  const sums = new Map<number, { records: number; lost: number }>();
  for (const { steps } of nodes) {
    // The last step is still being filled.
    for (const step of steps.slice(0, -1)) {
      const at = Math.round(step.at / 1_000_000);
      const sum = sums.get(at) ?? { records: 0, lost: 0 };
      sums.set(at, { records: sum.records + step.records, lost: sum.lost + step.lost });
    }
  }
  const times = [...sums.keys()].sort((a, b) => a - b);
  const of = (key: 'records' | 'lost') => times.map((at) => (sums.get(at)?.[key] ?? 0) / stepSecs);
  return {
    times,
    series: [
      { label: 'records/s', values: of('records'), kind: 'calm' },
      { label: 'lost/s', values: of('lost'), kind: 'bad' },
    ],
    markers: markers.map(({ at, label }) => ({ at: at / 1_000_000, label })),
    unit: '/s',
  };
}
