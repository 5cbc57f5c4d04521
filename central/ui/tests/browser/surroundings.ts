// A real browser before a running system. `scripts/lib/browser-test` starts both and says where they are.

import { execFileSync } from 'node:child_process';
import { mkdirSync, readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { connect, createServer } from 'node:net';
import type { AddressInfo, Socket } from 'node:net';

import { chromium } from 'playwright-core';
import type { Browser, BrowserContextOptions, Page } from 'playwright-core';

import type { Finding } from '../../web/model';

function told(name: string): string {
  const value = process.env[name];
  if (!value) throw new Error(`${name} is not set: run scripts/lib/browser-test`);
  return value;
}

/** The dashboard's address, without a slash behind it. */
export const dashboard = told('TAPIO_DASHBOARD');
const artefacts = told('TAPIO_ARTEFACTS');
const command = told('TAPIO_COMMAND');

export function launch(): Promise<Browser> {
  mkdirSync(artefacts, { recursive: true });
  return chromium.launch({
    executablePath: process.env['TAPIO_CHROMIUM'] ?? '/usr/bin/chromium',
    // Nothing of the browser's own shall look like a request of the page's.
    args: ['--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking', '--disable-component-update', '--disable-sync'],
  });
}

export interface Watched {
  page: Page;
  /** What the browser complained of, and what was asked of others than the dashboard. */
  complaints: string[];
}

export async function open(browser: Browser, options: BrowserContextOptions, path = '/'): Promise<Watched> {
  const context = await browser.newContext({ viewport: { width: 1360, height: 900 }, ...options });
  const page = await context.newPage();
  const complaints: string[] = [];
  page.on('console', (message) => {
    if (['error', 'warning'].includes(message.type())) complaints.push(`console: ${message.text()}`);
  });
  page.on('pageerror', (error) => complaints.push(`error: ${error.message}`));
  page.on('request', (request) => {
    if (new URL(request.url()).origin !== dashboard) complaints.push(`request: ${request.url()}`);
  });
  await page.goto(`${dashboard}${path}`);
  return { page, complaints };
}

export async function keep(page: Page, name: string): Promise<void> {
  await page.screenshot({ path: `${artefacts}/${name}.png`, fullPage: true });
}

export interface Road {
  /** Where the dashboard is to be had over this road, without a slash behind it. */
  address: string;
  /** Ends all connections, and refuses others until it is mended. */
  cut(): void;
  /** Carries nothing more and closes nothing; what is connected until it is mended stays so for good. */
  swallow(): void;
  mend(): void;
  close(): void;
}

/** A road of its own to the dashboard, as a forwarded port is one, that can be cut. */
export async function road(): Promise<Road> {
  const { hostname, port } = new URL(dashboard);
  const sockets = new Set<Socket>();
  let isCut = false;
  let swallows = false;
  const swallow = () => {
    swallows = true;
    for (const socket of sockets) socket.unpipe().resume();
  };
  const cut = () => {
    isCut = true;
    for (const socket of sockets) socket.destroy();
    sockets.clear();
  };
  const server = createServer((here) => {
    if (isCut) return void here.destroy();
    if (swallows) {
      sockets.add(here);
      here.on('error', () => here.destroy());
      here.on('close', () => sockets.delete(here));
      return void here.resume();
    }
    const there = connect(Number(port), hostname);
    for (const [one, other] of [[here, there], [there, here]] as const) {
      sockets.add(one);
      one.on('error', () => one.destroy());
      one.on('close', () => {
        sockets.delete(one);
        other.destroy();
      });
      one.pipe(other);
    }
  });
  await new Promise<void>((ready) => server.listen(0, '127.0.0.1', ready));
  const own = (server.address() as AddressInfo).port;
  return {
    address: `http://127.0.0.1:${own}`,
    cut,
    swallow,
    mend: () => void (isCut = swallows = false),
    close: () => {
      cut();
      server.close();
    },
  };
}

/** What the `tapio` command says, over REST and the store: another road than the dashboard's. */
export function findings(): Finding[] {
  const output = execFileSync(command, ['findings', '--json'], { encoding: 'utf8', timeout: 20_000 });
  return (JSON.parse(output) as { items: Finding[] }).items;
}

/** The workload's services in the order in which they call each other, as the demo printed it. */
export function services(): string[] {
  const line = readFileSync(told('TAPIO_DEMO_LOG'), 'utf8').match(/workload started: (.*?) \(/);
  return (line?.[1] ?? '').split(' → ');
}

const axe = readFileSync(createRequire(import.meta.url).resolve('axe-core/axe.min.js'), 'utf8');

/** What axe finds wrong with the page as it is, by the rules of WCAG 2.2 A and AA. */
export async function inaccessible(page: Page): Promise<string[]> {
  await page.evaluate(axe);
  return page.evaluate(async () => {
    const run = (globalThis as unknown as { axe: { run: (options: object) => Promise<{ violations: { id: string; nodes: { html: string; failureSummary: string }[] }[] }> } }).axe.run;
    const { violations } = await run({ runOnly: ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'wcag22aa', 'best-practice'] });
    return violations.flatMap(({ id, nodes }) => nodes.map(({ html, failureSummary }) => `${id}: ${html}: ${failureSummary}`));
  });
}
