// One finding: the sentence first, then what to do, the picture, and what it all rests on.

import { counted, grouped, length, shortId, words } from '../format';
import { stateWord } from '../incidents';
import type { Finding } from '../model';
import { findings, now } from '../state';
import { timeline } from '../timeline';
import { ChainPicture } from './ChainPicture';
import { Copy } from './Copy';
import { Failures } from './Failures';
import { Icon } from './icons';
import { Back } from './Node';
import { Proof } from './Proof';
import { Story } from './Story';
import { Time } from './Time';

export function FindingView({ finding }: { finding: Finding }) {
  const { verdict } = finding;
  const word = stateWord(finding);
  const told = timeline(finding);
  const others = [...findings.value.values()].filter(
    (other) => other.incident_id === finding.incident_id && other.id !== finding.id,
  );
  return (
    <article class="finding" aria-labelledby="verdict">
      <Back />
      <p class="row-facts">
        <span class={`badge ${verdict.severity}`}>{verdict.severity}</span>
        <span class={`badge ${word}`}>{word}</span>
        <span>
          since <Time at={finding.first_symptom_at} relative />
        </span>
        <span>found {length(finding.found_after)} after the first symptom</span>
      </p>
      <h2 class="verdict" id="verdict">
        {finding.title}
      </h2>
      {word === 'uncertain' && (
        <p class="note">
          This was announced; later evidence took the ground from under it. It is now {verdict.outcome}: {verdict.reason}.
        </p>
      )}
      {finding.state === 'superseded' && <p class="note">Another finding, with another cause, took its place.</p>}
      <Course finding={finding} />
      {finding.recommended_action && (
        <p class="action">
          <strong>Do</strong> {finding.recommended_action}
        </p>
      )}
      <ChainPicture finding={finding} />
      <Story finding={finding} timeline={told} />
      <Failures finding={finding} />
      <Proof finding={finding} />
      {others.length > 0 && (
        <section aria-labelledby="incident-title">
          <h3 id="incident-title">Same cause</h3>
          <ul>
            {others.map((other) => (
              <li key={other.id}>
                <a href={`#${other.id}`}>{other.title}</a> <span class="quiet">({stateWord(other)})</span>
              </li>
            ))}
          </ul>
        </section>
      )}
      <Candidates finding={finding} />
      <footer class="foot">
        <dl class="facts">
          <div>
            <dt>Finding</dt>
            <dd>
              <code>{finding.id}</code>, revision {finding.revision}
            </dd>
          </div>
          <div>
            <dt>Incident</dt>
            <dd>
              <code>{finding.incident_id}</code>
            </dd>
          </div>
          <div>
            <dt>Rule, rule set</dt>
            <dd>
              <code>{verdict.rule}</code>, <code>{verdict.rule_set}</code>
            </dd>
          </div>
          <div>
            <dt>Announced, revised</dt>
            <dd>
              <Time at={finding.announced_at} />, <Time at={finding.revised_at} />
            </dd>
          </div>
          <div>
            <dt>Heard up to</dt>
            <dd>
              <Time at={verdict.watermark} />
            </dd>
          </div>
          <div>
            <dt>Watched since</dt>
            <dd>
              <Time at={verdict.observed_since} />, {length(Math.max(0, finding.first_symptom_at - verdict.observed_since))} before the first symptom
            </dd>
          </div>
        </dl>
        <p class="buttons">
          <Copy text={finding.id} label="Copy id" />
          <Copy text={`${location.origin}${location.pathname}#${finding.id}`} label="Copy link" />
          <Copy text={`tapio explain ${shortId(finding.id)}`} label={`Copy “tapio explain ${shortId(finding.id)}”`} />
        </p>
        <details class="raw">
          <summary>Raw JSON</summary>
          <pre tabIndex={0} aria-label="The finding as JSON">
            {JSON.stringify(finding, null, 2)}
          </pre>
        </details>
      </footer>
      <p class="unseen">{`State of ${new Date(now.peek() / 1_000).toISOString()}`}</p>
    </article>
  );
}

/** How the symptom went on: counted, not observed, or stopped. */
function Course({ finding }: { finding: Finding }) {
  const { state, resolution, unobserved, continuation, verdict } = finding;
  const last = Math.max(verdict.symptom_seen_until, continuation.last);
  const silent = unobserved.map(({ node, since }, at) => (
    <>
      {at > 0 && ', '}
      <strong>{node}</strong> since <Time at={since} relative />
    </>
  ));
  return (
    <>
      {state === 'open' && silent.length > 0 && <p class="note">Not heard: {silent}. Whether it goes on is not known.</p>}
      {state === 'resolved' && resolution === 'unobserved' && (
        <p class="note">Closed without having been seen to recover{silent.length > 0 && <>: not heard {silent}</>}.</p>
      )}
      {state === 'resolved' && resolution !== 'unobserved' && (
        <p class="note calm">
          Its symptoms stopped{last > 0 && (<> after <Time at={last} relative /></>)}.
        </p>
      )}
      {continuation.count > 0 && (
        <p>
          The symptom went on: {grouped(continuation.count)} more times
          {continuation.at_least && ' or more (records were lost meanwhile)'}, last <Time at={continuation.last} relative />, counted until{' '}
          <Time at={continuation.counted_until} />.
        </p>
      )}
    </>
  );
}

function Candidates({ finding }: { finding: Finding }) {
  const { candidates, outcome } = finding.verdict;
  if (candidates.length < 2 && outcome === 'finding') return null;
  const names = new Map(finding.names.map((one) => [one.entity.id, one.name]));
  return (
    <section aria-labelledby="candidates-title">
      <h3 id="candidates-title">{counted(candidates.length, 'possible cause')}, ranked</h3>
      <ol>
        {candidates.map((candidate) => (
          <li key={`${candidate.rule} ${candidate.cause.id}`}>
            <strong>{names.get(candidate.cause.id) ?? `${candidate.cause.kind} ${candidate.cause.id}`}</strong> by {words(candidate.rule)}: evidence{' '}
            {candidate.evidence_present} of {candidate.evidence_expected}, {candidate.reason}
          </li>
        ))}
      </ol>
      {outcome !== 'finding' && (
        <p class="quiet">
          <Icon name="alert" /> The evidence does not decide between them.
        </p>
      )}
    </section>
  );
}
