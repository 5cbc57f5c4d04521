// What the verdict rests on: evidence present, expected and missing, what was lost, and the nodes that saw it.

import { counted, grouped, length, share, words } from '../format';
import type { Finding, NodeStatus } from '../model';
import { nodes, stepSecs } from '../state';
import { Chart } from './Chart';
import { Icon } from './icons';
import { activity } from './activity';

export function Proof({ finding }: { finding: Finding }) {
  const { verdict } = finding;
  const { losses, missing, missing_probes } = verdict;
  const against = verdict.evidence.filter((evidence) => evidence.stance === 'contradicting');
  const present = verdict.evidence.filter((evidence) => evidence.stance === 'supporting');
  return (
    <section aria-labelledby="proof-title">
      <h3 id="proof-title">
        Evidence: {verdict.evidence_present} of {verdict.evidence_expected} expected
      </h3>
      <ul class="checks">
        {present.map((evidence) => (
          <li key={`${evidence.step} ${evidence.subject.id}`} class="present">
            <Icon name="check" /> <strong>{words(evidence.step)}</strong>
            <span class="quiet">
              {evidence.role}, {evidence.link}, {counted(evidence.event_count, 'event')}
            </span>
          </li>
        ))}
        {missing.map((one) => (
          <li key={one.step} class="missing">
            <Icon name="gap" /> <strong>{words(one.step)}</strong>
            <span>
              {one.role}, expected and not found: {one.why}
            </span>
          </li>
        ))}
        {against.map((evidence) => (
          <li key={`against ${evidence.step} ${evidence.subject.id}`} class="against">
            <Icon name="alert" /> <strong>{words(evidence.step)}</strong>
            <span>speaks against it, {counted(evidence.event_count, 'event')}</span>
          </li>
        ))}
      </ul>
      <dl class="facts">
        <div>
          <dt>Lost in the window</dt>
          <dd class={losses.lost > 0 ? 'lost' : ''}>
            {grouped(losses.lost)} of {grouped(losses.records)} records <span class="quiet">({share(losses.lost, losses.records)})</span>
          </dd>
        </div>
        <div>
          <dt>Clock error</dt>
          <dd>± {length(verdict.clock_error)}</dd>
        </div>
        <div>
          <dt>Probes missing</dt>
          <dd class={missing_probes.length > 0 ? 'lost' : ''}>{missing_probes.length === 0 ? 'none' : missing_probes.join('; ')}</dd>
        </div>
        {losses.unknown_sources.length > 0 && (
          <div>
            <dt>Losses unknown of</dt>
            <dd class="lost">{losses.unknown_sources.join(', ')}</dd>
          </div>
        )}
      </dl>
      {losses.by_reason.length > 0 && (
        <ul>
          {losses.by_reason.map((loss) => (
            <li key={`${loss.stage} ${loss.subject} ${loss.reason}`}>
              {grouped(loss.count)} {words(loss.subject)} at {words(loss.stage)}: {words(loss.reason)}
            </li>
          ))}
        </ul>
      )}
      <Involved finding={finding} />
    </section>
  );
}

/** The nodes that the pods of the chain run on, as far as names say it. */
export function involved(finding: Finding, known: NodeStatus[]): { name: string; node: NodeStatus | undefined }[] {
  const names = [...finding.names, ...(finding.chain?.calls ?? []).flatMap(({ from, to }) => [from, to])];
  const wanted = new Set(names.map(({ pod }) => pod?.node ?? '').filter(Boolean));
  finding.verdict.losses.unknown_sources.forEach((name) => wanted.add(name));
  return [...wanted].sort().map((name) => ({ name, node: known.find((one) => one.node === name) }));
}

function Involved({ finding }: { finding: Finding }) {
  const all = involved(finding, nodes.value);
  const seen = all.flatMap(({ node }) => (node ? [node] : []));
  const isRecent = seen.some((node) => (node.steps[0]?.at ?? Infinity) <= finding.first_symptom_at);
  return (
    <>
      <h3>{all.length === 0 ? 'Nodes involved are not known by name' : `${all.length === 1 ? 'Node' : 'Nodes'} involved`}</h3>
      <ul class="involved">
        {all.map(({ name, node }) => (
          <li key={name}>
            <i class={`dot ${node?.state ?? 'disconnected'}`} aria-hidden="true" /> <a href={`#node/${encodeURIComponent(name)}`}>{name}</a>{' '}
            {node ? (
              <span class="quiet">
                {node.state} · {node.capability.filter((probe) => probe.state === 'working').length} of {counted(node.capability.length, 'probe')} work · clock ± {length(node.clock_error)} ·{' '}
                {node.lost > 0 ? `${grouped(node.lost)} lost in 10 min` : 'nothing lost in 10 min'}
              </span>
            ) : (
              <span class="quiet">not known here</span>
            )}
          </li>
        ))}
      </ul>
      {isRecent && (
        <Chart
          {...activity(seen, stepSecs.value, [{ at: finding.first_symptom_at, label: 'first symptom' }])}
          label="Records and losses per second of the nodes involved, over the last ten minutes"
        />
      )}
    </>
  );
}
