// A consistency model in the browser: torch's noise, Algorithm 1, and the paper's inpainting, on ONNX Runtime Web.
// Everything here follows the Python of the same name (core, sample, edit), seed by seed.
import * as ort from './ort.wasm.bundle.min.mjs';

const HERE = new URL('.', import.meta.url).href;
export const SIZE = 32, PIXELS = 3 * SIZE * SIZE, EPS = 0.002, T = 80;
// Of core.mix_seed: the first four bytes of blake2b of '0', '1', ...
const DRAWS = [613549620, 120362236, 327731190, 1752070969, 3141787104, 3146577611, 2654408883, 973742608];

function mixSeed(seed, draw) {
  let h = (seed ^ DRAWS[draw]) >>> 0;
  for (const k of [0x85ebca6b, 0xc2b2ae35]) h = Math.imul(h ^ (h >>> 15), k) >>> 0;
  return (h ^ (h >>> 16)) >>> 0;
}

// The Mersenne Twister, 24 of its bits at a time, as torch.Generator draws them.
function twister(seed) {
  const s = new Uint32Array(624);
  s[0] = seed;
  for (let i = 1; i < 624; i++) s[i] = Math.imul(1812433253, s[i - 1] ^ (s[i - 1] >>> 30)) + i;
  let at = 624;
  const mixed = (i, j) => ((s[i] & 0x80000000) | (s[j] & 0x7fffffff)) >>> 0;
  return () => {
    if (at === 624) {
      for (let i = 0; i < 624; i++) {
        const y = mixed(i, (i + 1) % 624);
        s[i] = s[(i + 397) % 624] ^ (y >>> 1) ^ (y & 1 ? 0x9908b0df : 0);
      }
      at = 0;
    }
    let y = s[at++];
    y ^= y >>> 11;
    y ^= (y << 7) & 0x9d2c5680;
    y ^= (y << 15) & 0xefc60000;
    y ^= y >>> 18;
    return (y >>> 0 & 0xffffff) / 0x1000000;
  };
}

// torch.randn for a multiple of 16 numbers: Box and Muller, the first eight of a block with the last eight.
export function noise(seed, draw = 0) {
  const uniform = twister(mixSeed(seed, draw)), x = new Float32Array(PIXELS);
  for (let i = 0; i < PIXELS; i++) x[i] = uniform();
  for (let b = 0; b < PIXELS; b += 16) for (let j = b; j < b + 8; j++) {
    const radius = Math.sqrt(-2 * Math.log(1 - x[j])), angle = 2 * Math.PI * x[j + 8];
    x[j] = radius * Math.cos(angle);
    x[j + 8] = radius * Math.sin(angle);
  }
  return x;
}

let session, queue = Promise.resolve();
export const isHere = () => Boolean(session);
export async function begin() {
  ort.env.wasm.numThreads = 1;
  ort.env.wasm.wasmPaths = { wasm: HERE + 'ort-wasm-simd-threaded.wasm' };
  session ??= ort.InferenceSession.create(HERE + 'student.onnx', { executionProviders: ['wasm'] });
  return session.catch(e => { session = undefined; throw e; });   // it may be asked for again
}

// f(x, t): a batch of noisy images at one level to their origins, clamped. One call at a time.
export function call(x, t, classes) {
  const run = async () => {
    const B = classes.length, feeds = {
      x: new ort.Tensor('float32', x, [B, 3, SIZE, SIZE]),
      t: new ort.Tensor('float32', new Float32Array(B).fill(t), [B]),
      y: new ort.Tensor('int64', BigInt64Array.from(classes, BigInt), [B]) };
    const out = (await (await begin()).run(feeds)).image.data;
    return Float32Array.from(out, v => Math.min(1, Math.max(-1, v)));
  };
  return queue = queue.then(run, run);
}

function gather(seeds, draw) {
  const z = new Float32Array(seeds.length * PIXELS);
  seeds.forEach((s, i) => z.set(noise(s, draw), i * PIXELS));
  return z;
}

// Algorithm 1. `start`: noise of deviation 1 in place of that of the seeds; `project`: what is put back after a call.
export async function multistep(seeds, classes, levels, { start, project = x => x } = {}) {
  let x = (start ?? gather(seeds, 0)).map(v => levels[0] * v);
  for (let i = 0; i < levels.length; i++) {
    if (i) {
      const z = gather(seeds, i), s = Math.sqrt(Math.max(levels[i] ** 2 - EPS ** 2, 0));
      x = x.map((v, k) => v + s * z[k]);
    }
    x = project(await call(x, levels[i], classes));
  }
  return x;
}

// Halfway noise has the deviation of noise only on the sphere: edit.interpolate.
export function between(a, b, share) {
  let dot = 0, aa = 0, bb = 0;
  for (let i = 0; i < a.length; i++) { dot += a[i] * b[i]; aa += a[i] * a[i]; bb += b[i] * b[i]; }
  const angle = Math.acos(dot / Math.sqrt(aa * bb)), s = Math.sin(angle);
  const p = Math.sin((1 - share) * angle) / s, q = Math.sin(share * angle) / s;
  return a.map((v, i) => p * v + q * b[i]);
}

// Algorithm 4 with a mask: 1 is generated anew, 0 stays.
export function inpaint(y, mask, seed, classes, levels) {
  const hidden = i => mask[i % (SIZE * SIZE)], known = y.map((v, i) => hidden(i) ? 0 : v), z = noise(seed, 0);
  const start = z.map((v, i) => v + known[i] / levels[0]);
  return multistep([seed], classes, levels, { start, project: x => x.map((v, i) => hidden(i) ? v : y[i]) });
}

// An image of the batch as RGBA bytes, rounded as pixels.to_bytes does.
export function bytes(x, i = 0) {
  const n = SIZE * SIZE, out = new Uint8ClampedArray(4 * n);
  for (let p = 0; p < n; p++) {
    for (let c = 0; c < 3; c++) out[4 * p + c] = Math.round(127.5 * (x[i * PIXELS + c * n + p] + 1));
    out[4 * p + 3] = 255;
  }
  return out;
}
