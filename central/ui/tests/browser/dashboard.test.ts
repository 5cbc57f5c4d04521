import type { Browser } from 'playwright-core';
import { afterAll, beforeAll, expect, test } from 'vitest';

import { offset } from '../../web/format';
import type { Finding, Incidents } from '../../web/model';
import { dashboard, findings, inaccessible, keep, launch, open, road, services } from './surroundings';
import type { Watched } from './surroundings';

// The leak takes up to half a minute to become a failure; a busy machine takes longer.
const FINDING_MILLIS_MAX = 120_000;

let browser: Browser;
let first: Watched;
let id: string;

beforeAll(async () => {
  browser = await launch();
  first = await open(browser, { colorScheme: 'light' });
});
afterAll(() => browser?.close());

const text = (selector: string) => first.page.locator(selector).first().innerText();

// Scenario: the page is opened while nothing is wrong yet.
// Guarantees: it says so, and whether that can be believed; the node is shown with what it can see.
test('all is quiet, and the page says whether to believe it', async () => {
  await expect.poll(() => text('.overview .verdict'), { timeout: 30_000 }).toBe('Nothing is wrong, as far as Tapio can see.');
  await keep(first.page, 'quiet-light');
  // From here on the fault may come at any time, so that only what stays is looked at.
  const { page, complaints } = await open(browser, { colorScheme: 'light' }, '/#overview');
  await expect.poll(() => page.locator('.trust h3').innerText(), { timeout: 30_000 }).toContain('Everything is heard');
  await expect.poll(() => page.locator('.nodes .row-facts').first().innerText()).toContain('live');
  expect(await inaccessible(page)).toEqual([]);
  expect(complaints).toEqual([]);
  await page.context().close();
});

// Scenario: a service is killed while the page is open.
// Guarantees: the finding appears by itself, without a reload.
test('a finding appears without a reload', async () => {
  await first.page.evaluate(() => Object.assign(globalThis, { stillHere: true }));
  await first.page.waitForSelector('.finding .verdict', { timeout: FINDING_MILLIS_MAX });
  expect(await first.page.evaluate(() => (globalThis as { stillHere?: boolean }).stillHere)).toBe(true);
  expect(await text('.top .count')).toMatch(/^\d+ open finding/);
  expect(await first.page.title()).toMatch(/^\(\d+\) /);
  expect(await text('[role=status]')).toMatch(/^New finding: /);
}, FINDING_MILLIS_MAX + 30_000);

// Scenario: the same finding on the page and from the `tapio` command, which reads the store through central.
// Guarantees: sentence, action, every line of the story with its time, evidence, what is missing and what was lost are
// the same.
test('the page tells what the command tells', async () => {
  const chain = services();
  const agrees = async () => {
    const own = findings().find((finding) => finding.names.some(({ name }) => chain.includes(name)));
    if (!own) return 'the command knows of no finding';
    id = own.id;
    await first.page.evaluate((hash) => (location.hash = hash), id);
    const shown = await first.page.locator('.finding').innerText();
    const missing = told(own).filter((sentence) => !shown.includes(sentence));
    return missing.join('\n');
  };
  await expect.poll(agrees, { timeout: 45_000, interval: 700 }).toBe('');
  await keep(first.page, 'finding-light');
});

function told(finding: Finding): string[] {
  const { verdict } = finding;
  return [
    finding.title,
    finding.recommended_action,
    finding.id,
    `revision ${finding.revision}`,
    ...finding.lines.map((line) => line.text),
    ...finding.lines.map((line) => (line.at === finding.first_symptom_at ? 'first symptom' : offset(line.at, finding.first_symptom_at))),
    `Evidence: ${verdict.evidence_present} of ${verdict.evidence_expected} expected`,
    ...verdict.missing.map((one) => one.why),
    `${verdict.losses.lost} of `,
    finding.names[0]?.pod?.node ?? 'not known by name',
  ];
}

// Scenario: the chain of the demo, whose order only the workload and its log know.
// Guarantees: the picture has the services from the symptom to the fault in the order of their calls, says where it
// broke, and says the same in words.
test('the picture is the chain that really calls', async () => {
  const chain = services();
  const picture = (await first.page.locator('svg.chain').getAttribute('aria-label')) ?? '';
  const finding = findings().find((one) => one.id === id);
  const nameOf = (role: string) => {
    const entity = finding?.verdict.evidence.find((one) => one.role === role)?.subject.id;
    return finding?.names.find((one) => one.entity.id === entity)?.name ?? '';
  };
  const [from, to] = [chain.indexOf(nameOf('symptom')), chain.indexOf(nameOf('fault'))];
  expect(from).toBeGreaterThanOrEqual(0);
  expect(to).toBeGreaterThan(from);
  for (let place = from; place < to; place += 1) expect(picture).toContain(`${chain[place]} calls ${chain[place + 1]}`);
  expect(picture).toMatch(new RegExp(`${chain[to - 1]} calls ${chain[to]}[^.]*, and that broke: `));
  expect(picture).not.toContain('that were not seen');
  await first.page.locator('.in-words summary').click();
  expect(await text('.in-words ul')).toContain(`${chain[to - 1]} calls ${chain[to]}`);
  for (const layer of ['kernel', 'network', 'application']) {
    const marks = first.page.locator('.lane', { has: first.page.getByText(layer, { exact: true }) }).locator('.mark');
    expect(await marks.count(), layer).toBeGreaterThan(0);
  }
});

// Scenario: the page in both themes, by the system's setting and by the switch.
// Guarantees: both are accessible by WCAG AA; what was chosen stays after a reload.
test('dark and light are accessible, and the choice stays', async () => {
  expect(await inaccessible(first.page)).toEqual([]);
  const dark = await open(browser, { colorScheme: 'dark', reducedMotion: 'reduce' }, `/#${id}`);
  await dark.page.waitForSelector('.finding .verdict');
  expect(await inaccessible(dark.page)).toEqual([]);
  await keep(dark.page, 'finding-dark');
  const ground = () => dark.page.evaluate(() => getComputedStyle(document.body).backgroundColor);
  const before = await ground();
  await dark.page.keyboard.press('t');
  expect(await ground()).toBe(before);
  await dark.page.keyboard.press('t');
  const light = await ground();
  expect(light).not.toBe(before);
  await dark.page.reload();
  await dark.page.waitForSelector('.finding .verdict');
  expect(await ground()).toBe(light);
  expect(dark.complaints).toEqual([]);
  await dark.page.context().close();
});

// Scenario: a phone, 360 pixels wide: list, finding, node.
// Guarantees: nothing scrolls sideways, opening leads to the finding and back to the list, and it is accessible.
test('small screens', async () => {
  const { page, complaints } = await open(browser, { viewport: { width: 360, height: 740 }, hasTouch: true, isMobile: true });
  const width = () => page.evaluate(() => document.documentElement.scrollWidth);
  await page.waitForSelector('.side a.row.open');
  expect(await width()).toBe(360);
  await keep(page, 'phone-list');
  await page.locator('.side a.row.open').first().tap();
  await page.waitForSelector('.finding .verdict');
  expect(await page.locator('.side').isVisible()).toBe(false);
  await page.locator('.story summary').first().tap();
  expect(await width()).toBe(360);
  expect(await inaccessible(page)).toEqual([]);
  await keep(page, 'phone-finding');
  await page.getByText('All incidents').first().tap();
  await page.locator('.side a.node-row').first().tap();
  await page.waitForSelector('.probes');
  expect(await width()).toBe(360);
  await keep(page, 'phone-node');
  expect(complaints).toEqual([]);
  await page.context().close();
});

// Scenario: the page without a mouse.
// Guarantees: filter, list, opening, going back and help work by keys alone; the focus is seen and never lost; letters
// can be turned off.
test('keyboard', async () => {
  const { page, complaints } = await open(browser, { colorScheme: 'light' }, '/#overview');
  await page.waitForSelector('.side a.row.open');
  const focused = () => page.evaluate(() => document.activeElement?.getAttribute('href') ?? document.activeElement?.id ?? '');
  await page.keyboard.press('/');
  await page.keyboard.type('no such name');
  await expect.poll(() => page.locator('.side').innerText()).toContain('hidden by the filter');
  await page.keyboard.press('Escape');
  await page.waitForSelector('.side a.row.open');
  await page.keyboard.press('j');
  const row = await focused();
  expect(row).toMatch(/^#f-[0-9a-f]{16}$/);
  const outline = await page.evaluate(() => getComputedStyle(document.activeElement as Element).outlineStyle);
  expect(outline).toBe('solid');
  await page.keyboard.press('Enter');
  await page.waitForSelector('.finding .verdict');
  expect(await focused()).toBe('detail');
  await page.keyboard.press('Escape');
  await expect.poll(focused).toBe(row);
  await page.keyboard.press('?');
  await page.waitForSelector('dialog[open]');
  expect(await inaccessible(page)).toEqual([]);
  await keep(page, 'help-light');
  await page.keyboard.press('Escape');
  await expect.poll(() => page.locator('dialog').count()).toBe(0);
  await page.keyboard.press('o');
  await expect.poll(() => page.locator('.overview .verdict').innerText()).toMatch(/open\.$/);
  // Letters can be turned off; then the help is behind its button, and the choice stays.
  await page.keyboard.press('?');
  await page.locator('dialog input[type=checkbox]').uncheck();
  await page.keyboard.press('Escape');
  await page.reload();
  await page.waitForSelector('.side a.row.open');
  for (const letter of ['?', '/', 't', 'j']) await page.keyboard.press(letter);
  expect(await page.locator('dialog').count()).toBe(0);
  expect(await focused()).not.toBe('filter');
  expect(await page.evaluate(() => document.documentElement.dataset['theme'])).toBeUndefined();
  await page.getByLabel('Keyboard help').click();
  await page.locator('dialog input[type=checkbox]').check();
  await page.keyboard.press('Escape');
  await expect.poll(() => page.locator('dialog').count()).toBe(0);
  await page.keyboard.press('/');
  expect(await focused()).toBe('filter');
  await keep(page, 'overview-light');
  expect(complaints).toEqual([]);
  await page.context().close();
});

// Scenario: a workload that is called like markup.
// Guarantees: its name is text wherever it is shown.
test('names are text', async () => {
  const name = '<img src=x onerror="globalThis.hit=1"><script>globalThis.hit=1</script>';
  const context = await browser.newContext();
  const page = await context.newPage();
  await page.route('**/api/v1/incidents', async (route) => {
    const answer = (await (await route.fetch()).json()) as Incidents;
    for (const finding of answer.incidents.flatMap((incident) => incident.findings)) {
      finding.title = finding.recommended_action = name;
      finding.revision += 1_000;
      finding.lines.forEach((line) => (line.text = line.basis = name));
      [...finding.names, ...(finding.chain?.calls ?? []).flatMap(({ from, to }) => [from, to])].forEach((one) => {
        one.name = name;
        if (one.pod) one.pod.pod = one.pod.node = name;
      });
    }
    await route.fulfill({ json: answer });
  });
  await page.goto(`${dashboard}/#${id}`);
  await page.waitForSelector('.finding .verdict');
  expect(await page.locator('.finding .verdict').innerText()).toBe(name);
  expect(await page.locator('#page img[src=x], #page script').count()).toBe(0);
  expect(await page.evaluate(() => (globalThis as { hit?: number }).hit)).toBeUndefined();
  await context.close();
});

// Scenario: the network between page and aggregator is cut for a while; then it swallows what it carries, closing nothing.
// Guarantees: the page says that what it shows is old, and goes on by itself when the network is back.
test('lost contact is said, and ends by itself', async () => {
  const way = await road();
  const context = await browser.newContext({ viewport: { width: 1360, height: 900 } });
  const page = await context.newPage();
  await page.goto(`${way.address}/#${id}`);
  await page.waitForSelector('.trust-pill.good, .trust-pill.doubt');
  const pill = () => page.locator('.trust-pill').innerText();
  way.cut();
  await expect.poll(pill, { timeout: 30_000 }).toContain('No contact with the aggregator');
  await keep(page, 'no-contact');
  way.mend();
  await expect.poll(pill, { timeout: 30_000 }).not.toContain('No contact');
  way.swallow();
  await expect.poll(pill, { timeout: 30_000 }).toContain('No contact with the aggregator');
  way.mend();
  await expect.poll(pill, { timeout: 60_000 }).not.toContain('No contact');
  await context.close();
  way.close();
}, 180_000);

// Scenario: another page's name points at the dashboard's address.
// Guarantees: it is refused, and every answer forbids what the page does not need.
test('other names are refused, and the policy is strict', async () => {
  const { request } = first.page.context();
  const foreign = await request.get(`${dashboard}/api/v1/incidents`, { headers: { host: 'evil.example' } });
  expect(foreign.status()).toBe(421);
  expect((await foreign.text()).includes(id)).toBe(false);
  const page = await request.get(`${dashboard}/`);
  expect(page.headers()['content-security-policy']).toContain("default-src 'none'");
});

// Scenario: the page that was open all the time.
// Guarantees: nothing was asked of anybody but the dashboard, and the browser had nothing to complain of.
test('nothing was asked elsewhere, nothing complained', () => {
  expect(first.complaints).toEqual([]);
});
