import { counted } from '../format';
import { isHelpOpen, lostSince, openCount, status, theme, trust, turnTheme, turnZone, zone } from '../state';
import { Icon } from './icons';

const themes = { system: ['auto', 'Theme of the system'], dark: ['moon', 'Dark'], light: ['sun', 'Light'] } as const;

export function Header() {
  const [icon, label] = themes[theme.value];
  const { level, headline } = trust.value;
  const count = openCount.value;
  return (
    <header class="top">
      <h1>
        <a href="#overview">
          <img src="./icon.svg" alt="" width="24" height="24" /> Tapio
        </a>
        <span class="cluster">{status.value ? status.value.cluster : ''}</span>
      </h1>
      <p class="count" data-open={count > 0}>
        {count > 0 ? `${counted(count, 'open finding')}` : 'No open findings'}
      </p>
      <a class={`trust-pill ${level}`} href="#overview">
        <Icon name={level === 'good' ? 'check' : level === 'doubt' ? 'alert' : 'cross'} />
        <span>{headline}</span>
        {lostSince.value === null && <i class="pulse" aria-hidden="true" />}
      </a>
      <nav class="tools" aria-label="Settings">
        <button type="button" class="plain" onClick={turnZone} aria-label={`Times in ${zone.value === 'utc' ? 'UTC' : 'local time'}; change`}>
          {zone.value === 'utc' ? 'UTC' : 'local'}
        </button>
        <button type="button" class="plain" onClick={turnTheme} aria-label={`${label}; change`} title={`${label} (t)`}>
          <Icon name={icon} />
        </button>
        <button type="button" class="plain" onClick={() => (isHelpOpen.value = true)} aria-label="Keyboard help" title="Keyboard help (?)">
          ?
        </button>
      </nav>
    </header>
  );
}
