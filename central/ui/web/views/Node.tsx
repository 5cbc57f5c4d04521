// One node: what it can see, what it lost, what it may use.

import { bytes, counted, grouped, length, share, words } from '../format';
import type { NodeStatus } from '../model';
import { isLoaded, nodes, now, stepSecs } from '../state';
import { Chart } from './Chart';
import { Icon } from './icons';
import { Time } from './Time';
import { activity } from './activity';

export function NodeView({ name }: { name: string }) {
  const node = nodes.value.find((one) => one.node === name);
  return (
    <article>
      <Back />
      {node ? (
        <>
          <h2 class="verdict">{sentence(node)}</h2>
          <NodeFacts node={node} />
          <section aria-labelledby="activity-title">
            <h3 id="activity-title">Records and losses</h3>
            <Chart {...activity([node], stepSecs.value, [])} label={`Records and losses per second of ${name} over the last ten minutes`} />
          </section>
        </>
      ) : (
        <h2 class="verdict">{isLoaded.value ? `No node ${name} is known here.` : 'Asking the aggregator …'}</h2>
      )}
    </article>
  );
}

export function Back() {
  return (
    <p class="back">
      <a href="#">
        <Icon name="back" /> All incidents
      </a>
    </p>
  );
}

function sentence({ node, state, heard_at }: NodeStatus): string {
  switch (state) {
    case 'live':
      return `${node} is live.`;
    case 'silent':
      return heard_at > 0 ? `${node} is connected and has said nothing for ${length(now.value - heard_at)}.` : `${node} is connected and has said nothing yet.`;
    case 'disconnected':
      return `${node} is not connected: what happens there is not seen.`;
  }
}

const limit = (name: string, value: number) => (name.includes('bytes') ? bytes(value) : name.includes('micros') ? length(value) : grouped(value));

export function NodeFacts({ node }: { node: NodeStatus }) {
  const failed = node.capability.filter((probe) => probe.state !== 'working');
  const working = node.capability.filter((probe) => probe.state === 'working');
  const limits = Object.entries(node.limits);
  return (
    <>
      <dl class="facts">
        <div>
          <dt>Session</dt>
          <dd>
            {node.state}
            {node.session_since > 0 && (
              <>
                , since <Time at={node.session_since} relative />
              </>
            )}
          </dd>
        </div>
        <div>
          <dt>Last heard</dt>
          <dd>
            <Time at={node.heard_at} relative />
          </dd>
        </div>
        <div>
          <dt>Clock error</dt>
          <dd>± {length(node.clock_error)}</dd>
        </div>
        <div>
          <dt>Lost in 10 min</dt>
          <dd class={node.lost > 0 ? 'lost' : ''}>
            {grouped(node.lost)} of {grouped(node.records)} <span class="quiet">({share(node.lost, node.records)})</span>
          </dd>
        </div>
        <div>
          <dt>Agent</dt>
          <dd>{node.agent_version || 'not told'}</dd>
        </div>
        <div>
          <dt>Kernel</dt>
          <dd>{node.kernel_release ? `${node.kernel_release}, ${node.architecture}` : 'not told'}</dd>
        </div>
      </dl>
      {node.losses.length > 0 && (
        <section>
          <h3>Lost, and where</h3>
          <ul>
            {node.losses.map((loss) => (
              <li key={`${loss.stage} ${loss.subject} ${loss.reason}`}>
                {grouped(loss.count)} {words(loss.subject)} at {words(loss.stage)}: {words(loss.reason)}
              </li>
            ))}
          </ul>
        </section>
      )}
      <section>
        <h3>
          Capability: {working.length} of {counted(node.capability.length, 'probe')} {node.capability.length === 1 ? 'works' : 'work'}
        </h3>
        {failed.length > 0 && (
          <ul class="probes failed">
            {failed.map((probe) => (
              <li key={probe.probe}>
                <Icon name="cross" /> <strong>{words(probe.probe)}</strong> {probe.state === 'disabled' ? 'is turned off' : `does not work: ${probe.reason ?? 'not told why'}`}
              </li>
            ))}
          </ul>
        )}
        <ul class="probes">
          {working.map((probe) => (
            <li key={probe.probe}>
              <Icon name="check" /> {words(probe.probe)}
            </li>
          ))}
        </ul>
      </section>
      {limits.length > 0 && (
        <section>
          <h3>Limits of the agent</h3>
          <dl class="facts">
            {limits.map(([name, value]) => (
              <div key={name}>
                <dt>{words(name)}</dt>
                <dd>{limit(name, value)}</dd>
              </div>
            ))}
          </dl>
        </section>
      )}
    </>
  );
}
