import { useEffect, useRef } from 'preact/hooks';

import { areLettersOn, isHelpOpen, turnLetters } from '../state';

const keys: [string, string][] = [
  ['j, ↓ / k, ↑', 'next / previous in the list'],
  ['Enter', 'open'],
  ['Esc', 'back to the list; clear the filter'],
  ['/', 'filter findings'],
  ['o', 'overview: can the system be trusted now?'],
  ['t', 'theme: system, dark, light'],
  ['u', 'times in UTC or local'],
  ['?', 'this help'],
];

export function Help() {
  const dialog = useRef<HTMLDialogElement>(null);
  useEffect(() => dialog.current?.showModal(), []);
  return (
    <dialog ref={dialog} class="help" onClose={() => (isHelpOpen.value = false)} aria-labelledby="help-title">
      <h2 id="help-title">Keyboard</h2>
      <dl>
        {keys.map(([key, what]) => (
          <div key={key}>
            <dt>
              <kbd>{key}</kbd>
            </dt>
            <dd>{what}</dd>
          </div>
        ))}
      </dl>
      <p>
        <label>
          <input type="checkbox" checked={areLettersOn.value} onChange={turnLetters} /> Single letters, / and ? are shortcuts
        </label>
      </p>
      <form method="dialog">
        <button type="submit" autofocus>
          Close
        </button>
      </form>
    </dialog>
  );
}
