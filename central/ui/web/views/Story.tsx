// What happened, in order, and when each layer saw it.

import { offset, words } from '../format';
import type { Evidence, Finding, Micros, Value } from '../model';
import { bytes, clock, counted, grouped, length } from '../format';
import { zone } from '../state';
import { ticks } from '../timeline';
import type { Entry, Mark, Timeline } from '../timeline';
import { Time } from './Time';

export function Story({ finding, timeline }: { finding: Finding; timeline: Timeline }) {
  return (
    <section aria-labelledby="story-title">
      <h3 id="story-title">What happened, as the layers saw it</h3>
      <Lanes finding={finding} timeline={timeline} />
      <ol class="story">
        {timeline.entries.map((entry) => (
          <li key={entry.number} class={`${entry.role} ${entry.stance}`} value={entry.number}>
            <StoryLine entry={entry} zero={finding.first_symptom_at} />
          </li>
        ))}
      </ol>
      <Changes finding={finding} />
    </section>
  );
}

function StoryLine({ entry, zero }: { entry: Entry; zero: Micros }) {
  return (
    <details>
      <summary>
        <span class="number" aria-hidden="true">
          {entry.number}
        </span>
        <span class="when">
          <Time at={entry.at} />
          <span class="quiet">{entry.at === zero ? 'first symptom' : offset(entry.at, zero)}</span>
        </span>
        <span class={`badge ${entry.stance === 'contradicting' ? 'against' : entry.role}`}>
          {entry.stance === 'contradicting' ? 'against' : entry.role}
        </span>
        <span class="text">{entry.text}</span>
        <span class="basis">
          {entry.link} · {entry.basis}
        </span>
      </summary>
      {entry.evidence.map((evidence) => (
        <EvidenceDetail key={evidence.step} evidence={evidence} />
      ))}
    </details>
  );
}

function shown(name: string, value: Value): string {
  if (typeof value !== 'number') return String(value);
  if (name.endsWith('_bytes')) return bytes(value);
  if (name === 'metric.value') return grouped(value);
  return String(value);
}

function EvidenceDetail({ evidence }: { evidence: Evidence }) {
  const more = evidence.event_count - evidence.events.length;
  return (
    <div class="evidence">
      <h4>{words(evidence.step)}</h4>
      <dl class="facts">
        <div>
          <dt>Seen</dt>
          <dd>
            {Object.entries(evidence.intents)
              .map(([intent, count]) => `${words(intent)} ×${grouped(count)}`)
              .join(', ')}
          </dd>
        </div>
        <div>
          <dt>From, to</dt>
          <dd>
            {clock(evidence.first.earliest, zone.value)}, {clock(evidence.last.latest, zone.value)} (each ±{' '}
            {length((evidence.first.latest - evidence.first.earliest) / 2)})
          </dd>
        </div>
        <div>
          <dt>Link</dt>
          <dd>{evidence.link}</dd>
        </div>
        <div>
          <dt>Probes</dt>
          <dd>{evidence.probes.map(words).join(', ')}</dd>
        </div>
        {Object.entries(evidence.attributes).map(([name, value]) => (
          <div key={name}>
            <dt>{name}</dt>
            <dd>{shown(name, value)}</dd>
          </div>
        ))}
      </dl>
      {evidence.traces.length > 0 && (
        <p class="ids">
          <strong>Traces</strong>{' '}
          {evidence.traces.map((trace) => (
            <code key={trace}>{trace}</code>
          ))}
        </p>
      )}
      <p class="ids">
        <strong>{counted(evidence.event_count, 'event')}</strong>{' '}
        {evidence.events.slice(0, 4).map((event) => (
          <code key={event}>{event}</code>
        ))}
        {more > 0 || evidence.events.length > 4 ? '…' : ''}
      </p>
    </div>
  );
}

function Lanes({ finding, timeline }: { finding: Finding; timeline: Timeline }) {
  const { from, until, lanes } = timeline;
  const zero = finding.first_symptom_at;
  const at = (time: Micros) => `${(((time - from) / (until - from)) * 100).toFixed(3)}%`;
  const missing = finding.verdict.missing_probes.length;
  return (
    <div class="lanes" role="table" aria-label="Evidence by layer over time">
      {lanes.map(({ layer, marks }) => (
        <div class="lane" role="row" key={layer}>
          <span class="lane-name" role="rowheader">
            {layer}
          </span>
          <div class="track" role="cell">
            {ticks(from, until, zero, 6).map((tick) => (
              <i key={tick} class={tick === zero ? 'tick zero' : 'tick'} style={{ left: at(tick) }} aria-hidden="true" />
            ))}
            {marks.length === 0 && <span class="nothing">{missing > 0 ? 'nothing; probes are missing' : 'nothing needed or seen'}</span>}
            {marks.map((mark, place) => (
              <MarkShape key={`${mark.number} ${place}`} mark={mark} left={at(mark.from)} width={`${((mark.until - mark.from) / (until - from)) * 100}%`} zero={zero} />
            ))}
          </div>
        </div>
      ))}
      <div class="lane axis" aria-hidden="true">
        <span class="lane-name" />
        <div class="track">
          {ticks(from, until, zero, 6).map((tick) => (
            <span key={tick} style={{ left: at(tick) }}>
              {tick === zero ? 'first symptom' : offset(tick, zero).replace('.0', '')}
            </span>
          ))}
        </div>
      </div>
    </div>
  );
}

function MarkShape({ mark, left, width, zero }: { mark: Mark; left: string; width: string; zero: Micros }) {
  const kind = mark.kind;
  const told = `${mark.number > 0 ? `${mark.number}: ` : ''}${mark.label}, ${offset(mark.from, zero)} from the first symptom`;
  return (
    <>
      <i class={`span ${kind}`} style={{ left, width }} aria-hidden="true" />
      <span class={`mark ${kind}`} style={{ left: mark.beside > 0 ? `calc(${left} + ${mark.beside} * 1.15rem)` : left }} title={told}>
        <b aria-hidden="true">{mark.number > 0 ? mark.number : ''}</b>
        <span class="unseen">{told}</span>
      </span>
    </>
  );
}

function Changes({ finding }: { finding: Finding }) {
  const { changes, observed_since } = finding.verdict;
  if (changes.length === 0) {
    return (
      <p class="quiet">
        No change of program or container was seen since <Time at={observed_since} />, when the nodes involved began to be watched.
      </p>
    );
  }
  return (
    <>
      <h4>Changed before</h4>
      <ul>
        {changes.map((change) => (
          <li key={change.event}>
            <Time at={change.at} relative /> {change.what}
          </li>
        ))}
      </ul>
    </>
  );
}
