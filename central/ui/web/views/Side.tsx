// The list: open incidents, those that are over folded away, and the nodes.

import { ago, counted, grouped } from '../format';
import { stateWord } from '../incidents';
import type { Incident } from '../incidents';
import type { Finding, NodeStatus } from '../model';
import {
  filter,
  findings,
  incidents,
  isLoaded,
  leftOut,
  nodes,
  nodesLeftOut,
  now,
  openIncidents,
  pastIncidents,
  selected,
} from '../state';

export function Side() {
  const hidden = findings.value.size - incidents.value.reduce((sum, incident) => sum + incident.findings.length, 0);
  return (
    <aside class="side" aria-label="Incidents and nodes">
      <div class="search">
        <input
          id="filter"
          type="search"
          placeholder="Filter: name, pod, trace …"
          aria-label="Filter findings"
          aria-keyshortcuts="/"
          value={filter.value}
          onInput={(event) => (filter.value = event.currentTarget.value)}
          autocomplete="off"
          spellcheck={false}
        />
        <kbd aria-hidden="true">/</kbd>
      </div>
      <section aria-labelledby="open-title">
        <h2 id="open-title">Open incidents</h2>
        {openIncidents.value.length > 0 ? (
          <ul class="incidents">
            {openIncidents.value.map((incident) => (
              <IncidentItem key={incident.id} incident={incident} />
            ))}
          </ul>
        ) : (
          <p class="quiet">{!isLoaded.value ? 'Asking the aggregator …' : filter.value ? 'None that fits the filter.' : 'None.'}</p>
        )}
      </section>
      {pastIncidents.value.length > 0 && (
        <details class="past" open={filter.value !== ''}>
          <summary>Over: {counted(pastIncidents.value.length, 'incident')}</summary>
          <ul class="incidents">
            {pastIncidents.value.map((incident) => (
              <IncidentItem key={incident.id} incident={incident} />
            ))}
          </ul>
        </details>
      )}
      {hidden > 0 && <p class="quiet">{counted(hidden, 'finding')} hidden by the filter.</p>}
      {leftOut.value > 0 && <p class="quiet">{counted(leftOut.value, 'older finding')} not shown; central has the history.</p>}
      <section aria-labelledby="nodes-title">
        <h2 id="nodes-title">Nodes</h2>
        {nodes.value.length > 0 ? (
          <ul class="nodes">
            {nodes.value.map((node) => (
              <NodeItem key={node.node} node={node} />
            ))}
          </ul>
        ) : (
          <p class="quiet">None has connected.</p>
        )}
        {nodesLeftOut.value > 0 && <p class="quiet">and {counted(nodesLeftOut.value, 'more node')}</p>}
      </section>
    </aside>
  );
}

function IncidentItem({ incident }: { incident: Incident }) {
  const { findings: members } = incident;
  return (
    <li>
      {members.length > 1 && (
        <p class="incident-head quiet">
          {counted(members.length, 'finding')} with one cause
        </p>
      )}
      <ul>
        {members.map((finding) => (
          <FindingItem key={finding.id} finding={finding} />
        ))}
      </ul>
    </li>
  );
}

function FindingItem({ finding }: { finding: Finding }) {
  const current = 'id' in selected.value && selected.value.finding?.id === finding.id;
  const word = stateWord(finding);
  return (
    <li>
      <a class={`row ${word} ${finding.verdict.severity}`} href={`#${finding.id}`} aria-current={current ? 'true' : undefined}>
        <span class="row-title">{finding.title}</span>
        <span class="row-facts">
          <span class={`badge ${word === 'open' ? finding.verdict.severity : word}`}>
            {word === 'open' ? finding.verdict.severity : word}
          </span>
          <span>{ago(finding.first_symptom_at, now.value)}</span>
          <span>
            evidence {finding.verdict.evidence_present}/{finding.verdict.evidence_expected}
          </span>
        </span>
      </a>
    </li>
  );
}

function NodeItem({ node }: { node: NodeStatus }) {
  const working = node.capability.filter((probe) => probe.state === 'working').length;
  const current = 'node' in selected.value && selected.value.node === node.node;
  return (
    <li>
      <a class="row node-row" href={`#node/${encodeURIComponent(node.node)}`} aria-current={current ? 'true' : undefined}>
        <span class="row-title">
          <i class={`dot ${node.state}`} aria-hidden="true" />
          {node.node}
        </span>
        <span class="row-facts">
          <span>{node.state}</span>
          <span>
            {working}/{node.capability.length} probes
          </span>
          <span class={node.lost > 0 ? 'lost' : ''}>{node.lost > 0 ? `${grouped(node.lost)} lost` : 'nothing lost'}</span>
        </span>
      </a>
    </li>
  );
}
