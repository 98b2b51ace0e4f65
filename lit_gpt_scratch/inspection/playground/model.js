// A model: a network with its alphabet. It reads texts and continues them, as generation/*.py does.

const CHUNK = 32; // positions that are computed before other messages are answered

// Return the tensors of a model by name, from compressed bytes (base64). If a tensor has a step, it is
// stored as whole numbers of steps in 16 bits: first the low bytes of all tensors, then the high bytes.
// Otherwise it is stored in 32 bits.
async function unpackWeights({tensors, data}) {
  const binary = atob(data), packed = new Uint8Array(binary.length);
  for (let i = 0; i < packed.length; i++) packed[i] = binary.charCodeAt(i);
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  const bytes = new Uint8Array(await new Response(stream).arrayBuffer()), half = bytes.length / 2;
  let start = 0;
  return Object.fromEntries(tensors.map(([name, shape, step]) => {
    const size = shape.reduce((product, side) => product * side, 1), values = new Float64Array(size);
    if (step === null) values.set(new Float32Array(bytes.buffer, 4 * start, size));
    else for (let i = 0; i < size; i++) values[i] = (bytes[half + start + i] << 24 >> 16 | bytes[start + i]) * step;
    start += size;
    return [name, {shape, data: values}];
  }));
}

// Return where the network's input starts in a text of this length. When a text outgrows the
// context, about its last half becomes the new input.
function inputStart(length, context) {
  const half = context - Math.floor(context / 2);
  return length <= context ? 0 : Math.ceil((length - context) / half) * half;
}

// Return the probabilities of the next character, from logits (V): top_k, temperature, top_p, min_p.
function nextDistribution(logits, {temperature = 1, topK = Infinity, topP = 1, minP = 0}) {
  const order = Array.from(logits.keys()).sort((a, b) => logits[b] - logits[a]); // stable, as in Python
  if (temperature === 0) return Float64Array.from(logits, (_, id) => id === order[0] ? 1 : 0);
  const least = logits[order[Math.min(topK, logits.length) - 1]], most = logits[order[0]];
  let p = softmax(Float64Array.from(logits, value => value < least ? -Infinity : (value - most) / temperature));
  if (topP < 1) {
    let sum = 0;
    for (const id of order) {
      const value = p[id];
      if (sum >= topP) p[id] = 0;
      sum += value;
    }
  }
  const minimum = minP * p.reduce((a, b) => Math.max(a, b));
  p = p.map(value => value < minimum ? 0 : value);
  const total = p.reduce((a, b) => a + b);
  return p.map(value => value / total);
}

// Return a function that draws uniform numbers in [0, 1), the same for the same seed (mulberry32).
function uniformNumbers(seed) {
  return () => {
    seed = seed + 0x6d2b79f5 | 0;
    let bits = Math.imul(seed ^ seed >>> 15, seed | 1);
    bits ^= bits + Math.imul(bits ^ bits >>> 7, bits | 61);
    return ((bits ^ bits >>> 14) >>> 0) / 2 ** 32;
  };
}

// Return the first id whose cumulative probability exceeds a uniform number.
function draw(probabilities, uniform) {
  let sum = 0, last = 0;
  for (let id = 0; id < probabilities.length; id++) {
    if (probabilities[id]) last = id;
    sum += probabilities[id];
    if (sum > uniform) return id;
  }
  return last; // the sum is less than 1 by rounding
}

class Model {
  static async open(description) { return new Model(description, await unpackWeights(description)); }

  constructor({net, alphabet, context}, weights) {
    Object.assign(this, {alphabet: [...alphabet], context, network: makeNetwork(net, weights)});
    this.idOf = new Map(this.alphabet.map((character, id) => [character, id]));
    this.traces = new Map(); // of the text that was read last: by what is switched off, and start
  }

  // Return the ids of the characters that the alphabet has.
  encode(characters) { return characters.map(character => this.idOf.get(character)).filter(id => id !== undefined); }

  // Read ids in windows, as generation does. Each window predicts after the positions from `from` to
  // its end. `pause` is awaited between chunks; it may throw to stop.
  async read(ids, off = [], pause = () => {}) {
    const windows = [], used = new Set();
    for (let length = 1; length <= ids.length; length++) {
      const start = inputStart(length, this.context);
      if (windows.at(-1)?.start !== start) windows.push({start, from: length - 1});
      windows.at(-1).end = length;
    }
    for (const window of windows) {
      const key = `${window.start} ${off}`, input = ids.slice(window.start, window.end);
      if (!this.traces.has(key)) this.traces.set(key, new Trace(this.context, off));
      const trace = window.trace = this.traces.get(key);
      let same = 0;
      while (same < input.length && same < trace.length && input[same] === trace.ids[same]) same++;
      trace.ids.length = same; // what follows has changed
      while (trace.length < input.length) {
        forward(this.network, input.slice(trace.length, trace.length + CHUNK), trace);
        await pause();
      }
      used.add(key);
    }
    // Keep the traces of other ablations of this text; forget windows that the text no longer has.
    for (const key of this.traces.keys()) if (!used.has(key) && key.endsWith(` ${off}`)) this.traces.delete(key);
    return windows;
  }

  // Return the window that predicts after a position.
  windowOf(windows, position) { return windows.find(({from, end}) => from <= position && position < end); }

  // Return the logits (V) after a position.
  logits(windows, position) {
    const {trace, start} = this.windowOf(windows, position);
    const size = this.alphabet.length, row = position - start;
    return trace.rows.get("logits").subarray(row * size, (row + 1) * size);
  }
}
