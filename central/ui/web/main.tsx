import './styles.css';

import { effect } from '@preact/signals';
import { render } from 'preact';

import { start } from './feed';
import { listen } from './keyboard';
import { isWide, openCount, openIncidents, route, selected, status } from './state';
import { App } from './views/App';

const place = document.getElementById('page');
if (place) render(<App />, place);

addEventListener('hashchange', () => {
  route.value = location.hash.slice(1);
  if (route.value && route.value !== 'overview') {
    // On a small screen what is opened takes the place of the list, from its top.
    if (!isWide.value) scrollTo(0, 0);
    document.getElementById('detail')?.focus({ preventScroll: true });
  }
});
matchMedia('(min-width: 60rem)').addEventListener('change', (event) => (isWide.value = event.matches));

effect(() => {
  const count = openCount.value;
  const first = openIncidents.value[0]?.findings[0];
  const title = 'finding' in selected.value ? selected.value.finding?.title : first?.title;
  const where = status.value ? ` ${status.value.cluster}` : '';
  document.title = `${count > 0 ? `(${count}) ` : ''}${title ? `${title} – ` : ''}Tapio${where}`;
});

listen();
start();
