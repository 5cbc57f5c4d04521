import { useSignal } from '@preact/signals';

const SHOWN_MILLIS = 1_500;

/** Copies a text; where the browser forbids it, selects nothing and says so. */
export function Copy({ text, label }: { text: string; label: string }) {
  const told = useSignal('');
  const copy = async () => {
    try {
      await navigator.clipboard.writeText(text);
      told.value = 'Copied';
    } catch {
      told.value = 'The browser forbids copying';
    }
    setTimeout(() => (told.value = ''), SHOWN_MILLIS);
  };
  return (
    <button type="button" class="plain" onClick={() => void copy()}>
      <span aria-live="polite">{told.value || label}</span>
    </button>
  );
}
