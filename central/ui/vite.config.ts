import { defineConfig } from 'vitest/config';

// `TAPIO_DASHBOARD=http://127.0.0.1:7404 npm run dev` shows a running aggregator's findings while the page is edited.
const aggregator = process.env['TAPIO_DASHBOARD'] ?? 'http://127.0.0.1:7404';

export default defineConfig({
  root: 'web',
  base: './',
  build: {
    outDir: '../dist',
    emptyOutDir: true,
    target: 'es2022',
    // One script and one style sheet: nothing to preload, nothing inlined that the page's policy would refuse.
    modulePreload: false,
    assetsInlineLimit: 0,
    reportCompressedSize: false,
  },
  oxc: { jsx: { runtime: 'automatic', importSource: 'preact' } },
  server: { proxy: { '/api': { target: aggregator, changeOrigin: true } } },
  test: { root: '.', include: ['tests/unit/**/*.test.ts'] },
});
