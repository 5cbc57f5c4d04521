// Nothing is selected, or nothing is wrong: whether that can be believed.

import { ago, counted, grouped, length, share } from '../format';
import { isLoaded, nodes, now, openCount, status, stepSecs, trust } from '../state';
import { Chart } from './Chart';
import { Icon } from './icons';
import { Time } from './Time';
import { activity } from './activity';

export function Overview({ unknown }: { unknown?: string | undefined }) {
  const { level, headline, doubts } = trust.value;
  const told = status.value;
  const count = openCount.value;
  return (
    <article class="overview">
      {unknown && isLoaded.value && (
        <p class="note">
          No finding <code>{unknown}</code> is known here any more. Central has the history: <code>tapio explain {unknown}</code>
        </p>
      )}
      <h2 class="verdict">
        {!isLoaded.value ? 'Asking the aggregator …' : count > 0 ? `${counted(count, 'finding')} ${count === 1 ? 'is' : 'are'} open.` : 'Nothing is wrong, as far as Tapio can see.'}
      </h2>
      <section class={`trust ${level}`} aria-labelledby="trust-title">
        <h3 id="trust-title">
          <Icon name={level === 'good' ? 'check' : level === 'doubt' ? 'alert' : 'cross'} /> {headline}
        </h3>
        {doubts.length > 0 && (
          <ul>
            {doubts.map((doubt) => (
              <li key={doubt}>{doubt}</li>
            ))}
          </ul>
        )}
        {told && (
          <dl class="facts">
            <div>
              <dt>Nodes live</dt>
              <dd>
                {told.nodes.live} of {told.nodes.known}
              </dd>
            </div>
            <div>
              <dt>Lost in {length(told.activity_secs * 1_000_000)}</dt>
              <dd>
                {grouped(told.lost)} of {grouped(told.records)} <span class="quiet">({share(told.lost, told.records)})</span>
              </dd>
            </div>
            <div>
              <dt>Evidence heard up to</dt>
              <dd>{told.watermark > 0 ? <Time at={told.watermark} relative /> : 'nothing heard yet'}</dd>
            </div>
            <div>
              <dt>Parts of the aggregator</dt>
              <dd>{told.health.status}</dd>
            </div>
            <div>
              <dt>Running since</dt>
              <dd>
                <Time at={told.started_at} relative />
              </dd>
            </div>
            <div>
              <dt>Rule set, version</dt>
              <dd>
                <code>{told.rule_set}</code>, {told.version}
              </dd>
            </div>
          </dl>
        )}
      </section>
      {nodes.value.length > 0 && (
        <section aria-labelledby="activity-title">
          <h3 id="activity-title">Records of all nodes, and losses</h3>
          <Chart {...activity(nodes.value, stepSecs.value, [])} label="Records and losses per second of all nodes over the last ten minutes" />
        </section>
      )}
      {told && (
        <p class="quiet">
          {told.aggregator} · state of {ago(told.now, now.value)}
        </p>
      )}
    </article>
  );
}
