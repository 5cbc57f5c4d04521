// How the failures went on: what each revision of the finding had counted by then, as a rate.

import type { Finding } from '../model';
import { Chart } from './Chart';

/** Fewer points make no curve. */
const POINTS_MIN = 3;

export function Failures({ finding }: { finding: Finding }) {
  const { first_symptom_at: zero, history } = finding;
  // Revisions are of the moment when they were made; what they count was seen a little before.
  const points = history.filter((revision) => revision.at > zero);
  if (points.length < POINTS_MIN - 1) return null;
  const times = [zero, ...points.map((point) => point.at)].map((at) => at / 1_000_000);
  const rates = (of: (point: (typeof points)[number]) => number) =>
    times.map((_at, place) => {
      // A step holds from its time to the next: what was counted in between. The last only closes the one before.
      const step = Math.min(place, points.length - 1);
      const next = points[step];
      const before = points[step - 1];
      const seconds = (times[step + 1] ?? 0) - (times[step] ?? 0);
      return next && seconds > 0 ? Math.max(0, of(next) - (before ? of(before) : 0)) / seconds : 0;
    });
  const series = [
    { label: 'symptoms/s', values: rates((point) => point.symptoms), kind: 'bad' as const },
    { label: 'broken calls/s', values: rates((point) => point.effects), kind: 'doubt' as const },
  ];
  return (
    <section aria-labelledby="failures-title">
      <h3 id="failures-title">How the failures went on</h3>
      <Chart times={times} series={series} markers={[{ at: zero / 1_000_000, label: 'first symptom' }]} unit="/s" isStepped label="Symptoms and broken calls per second, between the revisions of the finding" />
    </section>
  );
}
