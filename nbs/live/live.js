// The controls of the live model. Without JavaScript, WebAssembly or its files a sentence stays, and the picture above it.
const CLASSES = ['open-peeps', 'pixel-art', 'voxel-art', 'voxel-bot', 'critters', 'moods', 'cutouts', 'thumbs', 'planets', 'landscape'];
const box = document.getElementById('live-model');

function element(name, attributes = {}, ...children) {
  const e = document.createElement(name);
  for (const [k, v] of Object.entries(attributes)) k in e ? e[k] = v : e.setAttribute(k, v);
  e.append(...children);
  return e;
}
const labelled = (text, control) => element('label', {}, text, control);
const option = (text, value) => element('option', { value }, text);

async function main() {
  if (typeof WebAssembly !== 'object') throw new Error('this browser has no WebAssembly');
  const m = await import('./model.js');
  const say = text => status.textContent = text;
  const style = element('select', {}, ...CLASSES.map(option), option('any', -1));
  const seed = element('input', { type: 'number', min: 0, max: 2147483648, value: 0, step: 1 });   // as in Python
  const steps = element('select', {}, option('1', 1), option('2', 2), option('4', 4));
  const middle = element('input', { type: 'range', min: -1.5, max: 1.5, step: 0.01, value: Math.log10(0.3) });
  const shown = element('output', {}, '0.30');
  const walk = element('input', { type: 'range', min: 0, max: 1, step: 0.05, value: 0 });
  const canvas = element('canvas', { width: 32, height: 32, className: 'live-one', role: 'img', ariaLabel: 'no picture yet' });
  canvas.title = 'paint on it to cover a part';
  const grid = element('div', { className: 'live-grid' });
  const status = element('p', { className: 'live-status', role: 'status' }, 'Press Draw. The model comes with the first picture: 8 MB, and a runtime of 14 MB. Everything is computed here, by your browser.');
  const tile = (x, i, to) => to.getContext('2d').putImageData(new ImageData(m.bytes(x, i), 32, 32), 0, 0);
  const mask = new Uint8Array(32 * 32);
  let picture, answers = 0;

  function chosenSeed(add = 0) {   // a whole number in the range, whatever was typed
    const asked = Math.trunc(Number(seed.value)) || 0;
    seed.value = Math.min(Math.max(asked + add, 0), Number(seed.max));
    return Number(seed.value);
  }
  function uncover() {
    mask.fill(0);
    if (picture) tile(picture, 0, canvas);
  }

  const chosen = n => Array(n).fill(Number(style.value));
  const levels = () => ({ 1: [80], 2: [80, 10 ** middle.value], 4: [80, 0.5, 0.15, 0.05] })[steps.value];
  const named = () => style.selectedOptions[0].textContent;

  function draw(x) {
    picture = x;
    tile(x, 0, canvas);
    canvas.setAttribute('aria-label', `${named()}, seed ${seed.value}${Number(walk.value) ? ` on the way to the next, ${walk.value}` : ''}, calls: ${steps.value}`);
    box.dataset.image = Array.from(m.bytes(x)).join(',');
  }
  let wanted = 0, working = Promise.resolve();
  async function timed(what, work) {   // what was asked for in the meantime is not begun
    const mine = ++wanted;
    await working;
    if (mine !== wanted) return null;
    say(m.isHere() ? 'drawing ...' : 'fetching the model, 22 MB ...');
    const began = performance.now();
    const done = work();
    working = done.catch(() => null);
    try {
      const x = await done;
      if (mine === wanted) say(`${what}: ${(performance.now() - began).toFixed(0)} ms`);
      return mine === wanted ? x : null;
    } catch (e) {
      say(`That did not work: ${e.message}. Try again.`);
      return null;
    }
  }
  async function one() {
    grid.replaceChildren();
    await single();
  }
  async function single() {
    const s = chosenSeed(), a = m.noise(s), b = m.noise(s + 1), share = Number(walk.value);
    const start = share ? m.between(a, b, share) : a;
    const x = await timed(`${steps.value} call${steps.value > 1 ? 's' : ''}`, () => m.multistep([s], chosen(1), levels(), { start }));
    if (x) { mask.fill(0); draw(x); }
  }
  async function many() {
    const first = chosenSeed(), seeds = [...Array(16).keys()].map(i => first + i);
    walk.value = 0;
    const x = await timed('sixteen pictures', () => m.multistep(seeds, chosen(16), levels()));
    if (!x) return;
    mask.fill(0);
    draw(x.slice(0, m.PIXELS));
    grid.replaceChildren(...seeds.map((s, i) => {
      const c = element('canvas', { width: 32, height: 32 });
      tile(x, i, c);
      return element('button', { type: 'button', onclick: () => { seed.value = s; walk.value = 0; single(); }, title: `seed ${s}`, ariaLabel: `seed ${s}` }, c);
    }));
  }
  function cover(rule) {
    if (!picture) return say('Draw a picture first.');
    for (let p = 0; p < 1024; p++) if (rule(p % 32, p >> 5)) mask[p] = 1;
    const pixels = new ImageData(m.bytes(picture), 32, 32);
    for (let p = 0; p < 1024; p++) if (mask[p]) pixels.data.set([214, 51, 132, 255], 4 * p);
    canvas.getContext('2d').putImageData(pixels, 0, 0);
    say('Fill in draws what is covered; each time another answer.');
  }
  async function fill() {
    if (!picture || !mask.some(v => v)) return say('Cover a part of the picture first: paint on it, or take a half.');
    const ladder = [...Array(8).keys()].map(i => 80 * (0.02 / 80) ** (i / 8));
    const x = await timed('filled in, eight calls', () => m.inpaint(picture, mask, chosenSeed() + 1000 + answers++, chosen(1), ladder));
    if (x) { mask.fill(0); draw(x); }
  }
  function paint(e) {
    if (!e.buttons && e.type !== 'pointerdown') return;
    const r = canvas.getBoundingClientRect(), at = (v, from, size) => Math.floor(32 * (v - from) / size);
    const cx = at(e.clientX, r.left, r.width), cy = at(e.clientY, r.top, r.height);
    cover((x, y) => (x - cx) ** 2 + (y - cy) ** 2 <= 6);
  }
  canvas.addEventListener('pointerdown', paint);
  canvas.addEventListener('pointermove', paint);
  const button = (text, onclick) => element('button', { type: 'button', onclick }, text);
  const showMiddle = () => {
    shown.textContent = (10 ** middle.value).toFixed(2);
    middle.setAttribute('aria-valuetext', shown.textContent);
  };
  showMiddle();
  middle.addEventListener('input', () => { showMiddle(); steps.value = 2; one(); });
  for (const control of [style, seed, steps]) control.addEventListener('change', () => { walk.value = 0; one(); });
  walk.addEventListener('input', one);

  box.replaceChildren(
    element('p', { className: 'live-title' }, element('strong', {}, 'Try it: the model runs in this page.'), ' A call is one pass of the network; a second one begins with new noise of the level that you choose. Paint on the picture to cover a part, and let the model fill it in.'),
    element('div', { className: 'live-controls' }, labelled('style', style), labelled('seed', seed), labelled('calls', steps),
      labelled('level of the second call', element('span', { className: 'live-level' }, middle, shown)), labelled('walk to the next seed', walk),
      element('div', { className: 'live-buttons' }, button('Draw', one), button('Another', () => { chosenSeed(1); walk.value = 0; one(); }), button('Sixteen', many)),
      element('div', { className: 'live-buttons' }, button('Cover the left half', () => cover(x => x < 16)), button('the lower half', () => cover((x, y) => y > 15)), button('Uncover', uncover), button('Fill in', fill))),
    element('div', { className: 'live-pictures' }, canvas, grid), status);
  box.dataset.ready = 'yes';
  window.consistency = m;   // for the console, and for tests
}

main().catch(e => {
  box.append(element('p', { role: 'status' }, ` That needs WebAssembly, and the files of the built site (${e.message}). The picture above shows what it makes.`));
});
