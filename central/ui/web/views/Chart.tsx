// A chart over time, by uPlot, in the page's colours; the same numbers in words for those who do not see it.

import { useEffect, useRef } from 'preact/hooks';
import uPlot from 'uplot';
import 'uplot/dist/uPlot.min.css';

import { clock, grouped } from '../format';
import { theme, zone } from '../state';

export interface Series {
  label: string;
  values: (number | null)[];
  kind: 'calm' | 'bad' | 'doubt';
}

export interface Marker {
  /** Seconds since 1970. */
  at: number;
  label: string;
}

interface Props {
  /** Seconds since 1970. */
  times: number[];
  series: Series[];
  markers: Marker[];
  unit: string;
  label: string;
  isStepped?: boolean;
}

const HEIGHT = 170;

function colour(element: Element, name: string): string {
  return getComputedStyle(element).getPropertyValue(`--${name}`).trim() || 'gray';
}

export function Chart(props: Props) {
  const place = useRef<HTMLDivElement>(null);
  const { times, series, label } = props;
  // A chart that is drawn anew with each answer is right in either theme and at every width, and small.
  useEffect(() => {
    const element = place.current;
    if (!element || times.length < 2) return undefined;
    let plot = draw(element, props);
    const resized = new ResizeObserver(() => {
      plot.setSize({ width: element.clientWidth, height: HEIGHT });
    });
    resized.observe(element);
    const dark = matchMedia('(prefers-color-scheme: dark)');
    const redraw = () => {
      plot.destroy();
      plot = draw(element, props);
    };
    dark.addEventListener('change', redraw);
    return () => {
      resized.disconnect();
      dark.removeEventListener('change', redraw);
      plot.destroy();
    };
  }, [JSON.stringify([times, series, props.markers]), theme.value, zone.value]);
  if (times.length < 2) return <p class="quiet">Not enough has been told yet for a chart.</p>;
  const told = series.map((one) => {
    const values = one.values.filter((value) => value !== null);
    return `${one.label}: at most ${grouped(Math.max(0, ...values))}, last ${grouped(values.at(-1) ?? 0)}`;
  });
  return (
    <figure class="chart">
      <div ref={place} role="img" aria-label={`${label}. ${told.join('. ')}.`} />
      <figcaption>
        {series.map((one) => (
          <span key={one.label}>
            <i class={`swatch ${one.kind}`} aria-hidden="true" /> {one.label}
          </span>
        ))}
      </figcaption>
    </figure>
  );
}

function draw(element: HTMLElement, { times, series, markers, isStepped }: Props): uPlot {
  const ink = colour(element, 'quiet');
  const grid = colour(element, 'line');
  const colours = { calm: colour(element, 'mark'), bad: colour(element, 'bad'), doubt: colour(element, 'doubt') };
  const font = '12px system-ui, sans-serif';
  const stepped = uPlot.paths.stepped?.({ align: 1 });
  const axis = { stroke: ink, font, grid: { stroke: grid, width: 1 }, ticks: { show: false } };
  const ends = [times[0] ?? 0, times.at(-1) ?? 1, ...markers.map((marker) => marker.at)];
  const options: uPlot.Options = {
    width: element.clientWidth,
    height: HEIGHT,
    legend: { show: false },
    cursor: { show: false },
    scales: {
      x: { range: () => [Math.min(...ends) - 1, Math.max(...ends) + 1] },
      y: { range: (_plot, _min, max) => [0, Math.max(max * 1.3, 1)] },
    },
    axes: [
      { ...axis, size: 26, gap: 8, space: 80, values: (_plot, ticks) => ticks.map((at) => clock(at * 1_000_000, zone.value).slice(0, 8)) },
      { ...axis, size: 56, values: (_plot, ticks) => ticks.map((value) => (Number.isInteger(value) ? grouped(value) : String(value))) },
    ],
    series: [
      {},
      ...series.map((one) => ({
        label: one.label,
        stroke: colours[one.kind],
        ...(one.kind === 'doubt' ? {} : { fill: `${colours[one.kind]}22` }),
        width: 2,
        points: { show: times.length < 20, size: 6, fill: colours[one.kind] },
        ...(isStepped && stepped ? { paths: stepped } : {}),
      })),
    ],
    hooks: {
      draw: [
        (plot) => {
          const { ctx, bbox } = plot;
          ctx.save();
          ctx.font = `${12 * devicePixelRatio}px system-ui, sans-serif`;
          ctx.setLineDash([4 * devicePixelRatio, 3 * devicePixelRatio]);
          markers.forEach(({ at, label }, place) => {
            const x = plot.valToPos(at, 'x', true);
            ctx.strokeStyle = colours.bad;
            ctx.fillStyle = ink;
            ctx.beginPath();
            ctx.moveTo(x, bbox.top);
            ctx.lineTo(x, bbox.top + bbox.height);
            ctx.stroke();
            const isRight = x > bbox.left + bbox.width * 0.7;
            ctx.textAlign = isRight ? 'right' : 'left';
            ctx.fillText(label, x + (isRight ? -5 : 5) * devicePixelRatio, bbox.top + (14 + 16 * place) * devicePixelRatio);
          });
          ctx.restore();
        },
      ],
    },
  };
  return new uPlot(options, [times, ...series.map((one) => one.values)], element);
}
