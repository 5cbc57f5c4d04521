// The page: what is to be known first on top, the list beside what is looked at.

import { announced, isHelpOpen, route, selected } from '../state';
import { FindingView } from './Finding';
import { Header } from './Header';
import { Help } from './Help';
import { NodeView } from './Node';
import { Overview } from './Overview';
import { Side } from './Side';

export function App() {
  const { finding, id, node } = selected.value as { finding?: Parameters<typeof FindingView>[0]['finding']; id?: string; node?: string };
  const isDetail = route.value !== '' && route.value !== 'overview';
  return (
    <div class="frame" data-view={isDetail ? 'detail' : 'list'}>
      <a class="skip" href="#detail" onClick={(event) => skip(event)}>
        Skip to what is selected
      </a>
      <Header />
      <Side />
      <main id="detail" tabIndex={-1} aria-label="What is selected">
        {node !== undefined ? (
          <NodeView name={node} />
        ) : finding ? (
          <FindingView key={finding.id} finding={finding} />
        ) : (
          <Overview unknown={id} />
        )}
      </main>
      <p class="unseen" aria-live="polite" role="status">
        {announced.value}
      </p>
      {isHelpOpen.value && <Help />}
    </div>
  );
}

function skip(event: Event): void {
  event.preventDefault();
  document.getElementById('detail')?.focus();
}
