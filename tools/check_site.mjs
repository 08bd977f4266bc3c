// Drive Chromium over the built site: node tools/check_site.mjs _docs CHROMIUM -> JSON of what was seen, on stdout.
import { createRequire } from 'node:module';
import { createServer } from 'node:http';
import { readFile, readdir } from 'node:fs/promises';
import { join, resolve, extname } from 'node:path';

const [site, executablePath] = process.argv.slice(2);
const require = createRequire(resolve('.node/node_modules/x'));
const { chromium } = require('playwright-core');
const axe = await readFile(require.resolve('axe-core/axe.min.js'), 'utf8');
const KINDS = { '.html': 'text/html', '.js': 'text/javascript', '.mjs': 'text/javascript', '.css': 'text/css', '.json': 'application/json', '.wasm': 'application/wasm', '.png': 'image/png', '.svg': 'image/svg+xml', '.woff2': 'font/woff2' };

const server = createServer(async (request, answer) => {
  const path = join(site, decodeURIComponent(new URL(request.url, 'http://x').pathname));
  const file = await readFile(path.endsWith('/') ? join(path, 'index.html') : path).catch(() => null);
  answer.writeHead(file ? 200 : 404, { 'content-type': KINDS[extname(path)] ?? (path.endsWith('/') ? 'text/html' : 'application/octet-stream') }).end(file);
}).listen(0);
const home = `http://localhost:${server.address().port}/`;
const pages = (await readdir(site, { recursive: true })).filter(f => f.endsWith('.html') && !f.includes('site_libs') && f !== '404.html').sort();
const browser = await chromium.launch({ executablePath, args: ['--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking', '--disable-component-update', '--disable-sync'] });
const seen = { pages: {}, live: {}, search: [] };

async function look(file, context) {
  const page = await context.newPage(), found = { errors: [], failed: [] };
  page.on('console', m => { if (m.type() === 'error') found.errors.push(m.text()); });
  page.on('pageerror', e => found.errors.push(String(e)));
  page.on('requestfailed', r => found.failed.push(r.url()));
  page.on('response', r => { if (r.status() >= 400) found.failed.push(`${r.status()} ${r.url()}`); });
  const began = Date.now();
  await page.goto(home + file, { waitUntil: 'load' });
  found.milliseconds = Date.now() - began;
  await page.waitForFunction(() => !document.querySelector('span.math:not(:has(.katex))'), null, { timeout: 5000 }).catch(() => {});
  Object.assign(found, await page.evaluate(() => ({
    raw: [...document.querySelectorAll('span.math')].filter(e => !e.querySelector('.katex')).length + document.querySelectorAll('.katex-error').length,
    bytes: performance.getEntries().reduce((sum, e) => sum + (e.transferSize ?? 0), 0),
    alt: [...document.images].filter(i => !i.alt).length,
    ids: [...document.querySelectorAll('[id]')].map(e => e.id),
    links: [...document.querySelectorAll('a[href]')].map(a => a.href) })));
  await page.evaluate(axe);
  found.axe = await page.evaluate(async () => (await window.axe.run(document, { resultTypes: ['violations'], runOnly: ['wcag2a', 'wcag2aa'], rules: { 'color-contrast': { enabled: false } } })).violations
    .filter(v => ['serious', 'critical'].includes(v.impact)).map(v => `${v.id}: ${v.nodes.length}, such as ${v.nodes[0].target}`));
  await page.setViewportSize({ width: 360, height: 740 });
  found.wide = await page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);
  await page.close();
  return found;
}

async function contrast(file, colorScheme) {   // slow, and all pages have the same colours: a few pages of each kind
  const context = await browser.newContext({ colorScheme }), page = await context.newPage();
  await page.goto(home + file, { waitUntil: 'load' });
  await page.waitForTimeout(500);
  await page.evaluate(axe);
  const found = await page.evaluate(async () => (await window.axe.run(document, { resultTypes: ['violations'], runOnly: { type: 'rule', values: ['color-contrast'] } })).violations
    .map(v => `${v.id}: ${v.nodes.length}, such as ${v.nodes[0].target}: ${v.nodes[0].failureSummary}`));
  const themed = await page.evaluate(() => document.documentElement.classList.contains('quarto-dark'));
  await context.close();
  return (themed === (colorScheme === 'dark') ? found : ['the theme is another one']).map(f => `${colorScheme}: ${f}`);
}

async function live() {
  const page = await browser.newPage();
  await page.goto(home);
  await page.waitForSelector('#live-model[data-ready]');
  const out = await page.evaluate(async () => {
    const m = window.consistency, began = performance.now();
    const draw = async (...a) => Array.from(m.bytes(await m.multistep(...a)));
    const result = { noise: Array.from(m.noise(7, 1)).slice(0, 64) };
    result.one = await draw([3], [4], [80]);
    result.first = performance.now() - began;
    const again = performance.now();
    result.two = await draw([4294967295], [8], [80, 0.3]);
    result.second = performance.now() - again;
    result.four = await draw([5], [-1], [80, 0.5, 0.15, 0.05]);
    const y = await m.multistep([3], [4], [80]), mask = new Uint8Array(1024).map((_, p) => p % 32 < 16);
    result.filled = Array.from(m.bytes(await m.inpaint(y, mask, 11, [4], [80, 5, 0.5])));
    return result;
  });
  // as a person does: keyboard alone, from the first control on
  await page.focus('#live-model select');
  for (let i = 0; i < 30 && await page.evaluate(() => document.activeElement.textContent) !== 'Draw'; i++) await page.keyboard.press('Tab');
  await page.keyboard.press('Enter');
  await page.waitForFunction(() => document.querySelector('#live-model').dataset.image, null, { timeout: 60000 });
  out.by_hand = await page.evaluate(() => document.querySelector('#live-model').dataset.image.split(',').map(Number));
  out.status = await page.textContent('.live-status');
  await page.click('#live-model button:has-text("Sixteen")');
  await page.waitForFunction(() => document.querySelectorAll('.live-grid canvas').length === 16, null, { timeout: 60000 });
  await page.click('#live-model button:has-text("Cover the left half")');
  await page.click('#live-model button:has-text("Fill in")');
  await page.waitForFunction(() => /filled in/.test(document.querySelector('.live-status').textContent), null, { timeout: 60000 });
  out.sixteen = 16;
  await page.close();
  return out;
}

async function search() {
  const page = await browser.newPage();
  await page.goto(home);
  const field = page.locator('input[type=search], #quarto-search input, input[placeholder*=Search]').first();
  await field.fill('multistep');
  await page.waitForTimeout(1500);
  const hits = await page.locator('a[href*="sample"]').evaluateAll(as => as.filter(a => a.offsetParent && /multistep/.test(a.textContent + a.href)).map(a => a.href));
  await page.close();
  return hits;
}

const context = await browser.newContext({ viewport: { width: 1300, height: 900 } });
const left = [...pages];   // four at a time
await Promise.all([1, 2, 3, 4].map(async () => { for (let file; file = left.shift();) seen.pages[file] = await look(file, context); }));
const kinds = ['index.html', 'core.html', 'sample.html', 'train_cd.html', 'compare_methods.html', 'tutorials/editing.html'];
await Promise.all(['light', 'dark'].map(async theme => { for (const file of kinds) seen.pages[file].axe.push(...await contrast(file, theme)); }));
seen.live = await live();
seen.search = await search();
await browser.close();
server.close();
process.stdout.write(JSON.stringify(seen).replaceAll(home, '/'));
