// The chain as a picture: boxes and arrows from left to right, from top to bottom where there is no room.

import { useEffect, useRef, useState } from 'preact/hooks';

import { inWords, picture } from '../chain';
import type { Arrow, Box, Picture } from '../chain';
import { counted } from '../format';
import type { Finding } from '../model';
import { zone } from '../state';

const BOX = { width: 184, height: 92 };
const GAP = { along: 128, across: 26 };
const EDGE = 10;
const NAME_CHARACTERS_MAX = 19;
const DETAIL_CHARACTERS_MAX = 25;
const WHAT_CHARACTERS_MAX = 22;
const LABEL_CHARACTERS_MAX = 40;

interface Place {
  x: number;
  y: number;
}

const cut = (text: string, most: number) => (text.length > most ? `${text.slice(0, most - 1)}…` : text);

export function ChainPicture({ finding }: { finding: Finding }) {
  const drawn = picture(finding);
  const figure = useRef<HTMLElement>(null);
  const [room, setRoom] = useState(900);
  useEffect(() => {
    const element = figure.current;
    if (!element) return undefined;
    const observer = new ResizeObserver(([entry]) => entry && setRoom(entry.contentRect.width));
    observer.observe(element);
    return () => observer.disconnect();
  }, []);
  if (drawn.boxes.length === 0) return null;
  const across = drawn.columns * BOX.width + (drawn.columns - 1) * GAP.along + 2 * EDGE;
  const isUpright = across > room;
  const sentences = inWords(drawn, finding, zone.value);
  return (
    <section aria-labelledby="chain-title">
      <h3 id="chain-title">Who called whom, and where it broke</h3>
      <figure class="picture" ref={figure}>
        <Drawing drawn={drawn} isUpright={isUpright} room={room} label={sentences.join(' ')} />
        <figcaption>
          <span>
            <i class="key fault" aria-hidden="true" /> cause and fault
          </span>
          <span>
            <i class="key effect" aria-hidden="true" /> affected
          </span>
          <span>
            <i class="key broken" aria-hidden="true" /> broken calls
          </span>
          {drawn.arrows.some((arrow) => arrow.link === 'inferred') && (
            <span>
              <i class="key inferred" aria-hidden="true" /> inferred
            </span>
          )}
          {drawn.leftOut > 0 && <span>{counted(drawn.leftOut, 'more call', 'more calls')} not drawn</span>}
        </figcaption>
      </figure>
      <details class="in-words">
        <summary>The same in words</summary>
        <ul>
          {sentences.map((sentence) => (
            <li key={sentence}>{sentence}</li>
          ))}
        </ul>
      </details>
    </section>
  );
}

function Drawing({ drawn, isUpright, room, label }: { drawn: Picture; isUpright: boolean; room: number; label: string }) {
  const along = isUpright ? 64 : GAP.along;
  // Upright, boxes of one row stand below each other's column only as far as there is room.
  const fits = isUpright ? Math.max(1, Math.floor((room - 2 * EDGE + GAP.across) / (BOX.width + GAP.across))) : drawn.rows;
  const columnHeights = new Map<number, number>();
  for (const box of drawn.boxes) {
    const lines = isUpright ? Math.floor(box.row / fits) + 1 : 1;
    columnHeights.set(box.column, Math.max(columnHeights.get(box.column) ?? 1, lines));
  }
  const topOf = (column: number): number => {
    let top = EDGE;
    for (let before = 0; before < column; before += 1) {
      top += (columnHeights.get(before) ?? 1) * (BOX.height + GAP.across) - GAP.across + along;
    }
    return top;
  };
  const rowsOf = new Map<number, number>();
  drawn.boxes.forEach((box) => rowsOf.set(box.column, (rowsOf.get(box.column) ?? 0) + 1));
  const widest = isUpright ? Math.min(fits, drawn.rows) : drawn.rows;
  const placeOf = (box: Box): Place => {
    if (isUpright) {
      return {
        x: EDGE + (box.row % fits) * (BOX.width + GAP.across),
        y: topOf(box.column) + Math.floor(box.row / fits) * (BOX.height + GAP.across),
      };
    }
    // Columns with fewer boxes stand in the middle, so that the chain is one line.
    const missing = (drawn.rows - (rowsOf.get(box.column) ?? 1)) / 2;
    return {
      x: EDGE + box.column * (BOX.width + along),
      y: EDGE + (box.row + missing) * (BOX.height + GAP.across),
    };
  };
  const places = new Map(drawn.boxes.map((box) => [box.key, placeOf(box)]));
  const last = drawn.columns - 1;
  const width = isUpright
    ? widest * (BOX.width + GAP.across) - GAP.across + 2 * EDGE
    : drawn.columns * (BOX.width + along) - along + 2 * EDGE;
  const height = isUpright
    ? topOf(last) + (columnHeights.get(last) ?? 1) * (BOX.height + GAP.across) - GAP.across + EDGE
    : drawn.rows * (BOX.height + GAP.across) - GAP.across + 2 * EDGE;
  const full = isUpright ? Math.max(width, Math.min(room, 340)) : width;
  return (
    <svg class="chain" viewBox={`0 0 ${full} ${height}`} width={full} height={height} role="img" aria-label={label}>
      <defs>
        {['plain', 'bad'].map((kind) => (
          <marker key={kind} id={`head-${kind}`} class={`head ${kind}`} viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" orient="auto-start-reverse">
            <path d="M0 0L8 4L0 8z" />
          </marker>
        ))}
      </defs>
      {drawn.arrows.map((arrow) => (
        <ArrowLine key={arrow.key} arrow={arrow} from={places.get(arrow.from)} to={places.get(arrow.to)} isUpright={isUpright} />
      ))}
      {drawn.boxes.map((box) => (
        <BoxShape key={box.key} box={box} place={places.get(box.key) ?? { x: 0, y: 0 }} />
      ))}
    </svg>
  );
}

function BoxShape({ box, place }: { box: Box; place: Place }) {
  const isFault = box.role === 'fault' || box.role === 'cause';
  return (
    <g class={`box ${box.role ?? 'by'}`} transform={`translate(${place.x} ${place.y})`}>
      <title>{`${box.name}${box.detail ? ` (${box.detail})` : ''}${box.what.length > 0 ? `: ${box.what.join(', ')}` : ''}`}</title>
      <rect width={BOX.width} height={BOX.height} rx="8" />
      <text class="name" x="12" y="24">
        {cut(box.name, isFault ? NAME_CHARACTERS_MAX - 3 : NAME_CHARACTERS_MAX)}
      </text>
      <text class="detail" x="12" y="41">
        {cut(box.detail || 'no pod known', DETAIL_CHARACTERS_MAX)}
      </text>
      {box.what.map((what, place) => (
        <text key={what} class="what" x="12" y={63 + place * 18}>
          {cut(what, WHAT_CHARACTERS_MAX)}
        </text>
      ))}
      {isFault && <path class="mark" d={`M${BOX.width - 26} 12l12 12m0-12l-12 12`} />}
    </g>
  );
}

function ArrowLine({ arrow, from, to, isUpright }: { arrow: Arrow; from: Place | undefined; to: Place | undefined; isUpright: boolean }) {
  if (!from || !to) return null;
  const isBack = isUpright ? from.y >= to.y : from.x >= to.x;
  const start = isUpright
    ? { x: from.x + BOX.width / 2, y: isBack ? from.y : from.y + BOX.height }
    : { x: isBack ? from.x + BOX.width / 2 : from.x + BOX.width, y: isBack ? from.y + BOX.height : from.y + BOX.height / 2 };
  const end = isUpright
    ? { x: to.x + BOX.width / 2, y: isBack ? to.y + BOX.height : to.y - 2 }
    : { x: isBack ? to.x + BOX.width / 2 : to.x - 2, y: isBack ? to.y + BOX.height : to.y + BOX.height / 2 };
  const bend = isUpright ? Math.abs(end.y - start.y) / 2 : Math.abs(end.x - start.x) / 2;
  const path = isUpright
    ? `M${start.x} ${start.y}C${start.x} ${start.y + bend} ${end.x} ${end.y - bend} ${end.x} ${end.y}`
    : `M${start.x} ${start.y}C${start.x + bend} ${start.y} ${end.x - bend} ${end.y} ${end.x} ${end.y}`;
  const middle = { x: (start.x + end.x) / 2, y: (start.y + end.y) / 2 };
  const text = arrow.broken || (arrow.isIndirect ? 'through others' : '');
  const parts = lines(cut(text, LABEL_CHARACTERS_MAX));
  const kind = arrow.broken ? 'bad' : 'plain';
  return (
    <g class={`arrow ${kind} ${arrow.link} ${arrow.isIndirect ? 'indirect' : ''}`}>
      <title>{text || 'calls'}</title>
      <path d={path} marker-end={`url(#head-${kind})`} />
      {arrow.broken && <path class="mark" d={`M${middle.x - 6} ${middle.y - 6}l12 12m0-12l-12 12`} />}
      {parts.map((part, place) => (
        <text
          key={part}
          x={isUpright ? middle.x + 14 : middle.x}
          y={isUpright ? middle.y + 4 + (place - (parts.length - 1) / 2) * 14 : place === 0 ? middle.y - 12 : middle.y + 8 + 14 * place}
          text-anchor={isUpright ? 'start' : 'middle'}
        >
          {part}
        </text>
      ))}
    </g>
  );
}

/** Above and below the arrow, so that a label is no wider than it. */
function lines(text: string): string[] {
  const parts = text.split(', ');
  return parts.length <= 1 ? parts.filter(Boolean) : [parts[0] ?? '', ...parts.slice(1)];
}
