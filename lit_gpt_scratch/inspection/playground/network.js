// The networks of this project in plain JavaScript: the same functions as models/*.py.
//
// Every part maps x, the vectors of `count` new positions one after the other, to as many vectors.
// A Trace keeps what earlier positions have left: so a character that is typed at the end costs only
// its own position. Numbers have 64 bits: JavaScript has no other arithmetic, and converting takes time.
//
// Shapes: N new positions, T all positions so far, C channels, H heads, D head size, V alphabet size.

// What a network has computed for a text: rows of T positions by name, such as keys, attention
// weights and logits. `off` holds the names of the parts that are switched off.
class Trace {
  constructor(context, off = []) {
    Object.assign(this, {context, off: new Set(off), ids: [], rows: new Map()});
  }

  get length() { return this.ids.length; }

  // Return the rows (context, width) of a name.
  all(name, width) {
    if (!this.rows.has(name)) this.rows.set(name, new Float64Array(this.context * width));
    return this.rows.get(name);
  }

  // Store x (N, width) as the rows of the new positions; return the rows of all positions.
  keep(name, x, width) {
    const rows = this.all(name, width);
    rows.set(x, this.length * width);
    return rows;
  }
}

// Return x (N, I) times the transposed weight (O, I), plus a bias (O). Rows of the weight begin every
// `stride` numbers.
// Two rows of x and four of the weight share what is loaded: this is four times as fast as one sum
// after the other. Where rows of the weight are missing at the end, the last one is computed again.
function linear(x, count, {data: w, shape: [outputs, inputs], stride = inputs}, bias) {
  const y = new Float64Array(count * outputs);
  for (let t = 0; t < count; t += 2) {
    const x0 = t * inputs, x1 = x0 + inputs, y0 = t * outputs, y1 = y0 + outputs;
    for (let o = 0; o < outputs; o += 4) {
      const p = Math.min(o + 1, outputs - 1), q = Math.min(o + 2, outputs - 1), r = Math.min(o + 3, outputs - 1);
      const w0 = o * stride, w1 = p * stride, w2 = q * stride, w3 = r * stride;
      let a0 = 0, a1 = 0, a2 = 0, a3 = 0, b0 = 0, b1 = 0, b2 = 0, b3 = 0;
      if (t + 1 === count) for (let i = 0; i < inputs; i++) {
        const a = x[x0 + i];
        a0 += a * w[w0 + i]; a1 += a * w[w1 + i]; a2 += a * w[w2 + i]; a3 += a * w[w3 + i];
      } else for (let i = 0; i < inputs; i++) {
        const a = x[x0 + i], b = x[x1 + i], c = w[w0 + i], d = w[w1 + i], e = w[w2 + i], f = w[w3 + i];
        a0 += a * c; a1 += a * d; a2 += a * e; a3 += a * f;
        b0 += b * c; b1 += b * d; b2 += b * e; b3 += b * f;
      }
      y[y0 + o] = a0; y[y0 + p] = a1; y[y0 + q] = a2; y[y0 + r] = a3;
      if (t + 1 < count) { y[y1 + o] = b0; y[y1 + p] = b1; y[y1 + q] = b2; y[y1 + r] = b3; }
    }
  }
  if (bias) for (let i = 0; i < y.length; i++) y[i] += bias.data[i % outputs];
  return y;
}

// Return `size` columns of x (N, width), from column `first` on.
function columns(x, width, first, size) {
  const y = new Float64Array(x.length / width * size);
  for (let from = first, to = 0; to < y.length; from += width, to += size) y.set(x.subarray(from, from + size), to);
  return y;
}

const add = (x, y) => x.map((value, i) => value + y[i]);
const zeros = x => new Float64Array(x.length);

// Scale each vector (width) to a root mean square of 1 (RMSNorm without a gain).
function rmsNorm(x, width) {
  const y = new Float64Array(x.length);
  for (let t = 0; t < x.length; t += width) {
    let squares = 0;
    for (let i = 0; i < width; i++) squares += x[t + i] ** 2;
    const scale = Math.sqrt(width) / Math.max(Math.sqrt(squares), 1e-6);
    for (let i = 0; i < width; i++) y[t + i] = x[t + i] * scale;
  }
  return y;
}

// Shift each vector to a mean of 0, scale it to a variance of 1, and multiply by the gain.
function layerNorm(x, {data: gain, shape: [width]}) {
  const y = new Float64Array(x.length);
  for (let t = 0; t < x.length; t += width) {
    let mean = 0, variance = 0;
    for (let i = 0; i < width; i++) mean += x[t + i] / width;
    for (let i = 0; i < width; i++) variance += (x[t + i] - mean) ** 2 / width;
    const scale = 1 / Math.sqrt(variance + 1e-5);
    for (let i = 0; i < width; i++) y[t + i] = (x[t + i] - mean) * scale * gain[i];
  }
  return y;
}

// Return x times the probability that a normal number is below x: GELU, not its tanh approximation.
// The error function is a polynomial with a relative error of 1.2e-7 (Press et al., Numerical Recipes).
function gelu(x) {
  const z = Math.abs(x) / Math.SQRT2, t = 1 / (1 + z / 2);
  const series = [.17087277, -.82215223, 1.48851587, -1.13520398, .27886807, -.18628806, .09678418, .37409196, 1.00002368, -1.26551223];
  const tail = t * Math.exp(series.reduce((sum, term) => sum * t + term) - z * z); // 1 - erf(z)
  return x * (x < 0 ? tail : 2 - tail) / 2;
}
const squaredRelu = x => Math.max(x, 0) ** 2;

// Turn values into probabilities, from the largest down so that exp cannot overflow.
function softmax(values) {
  let most = -Infinity, sum = 0;
  for (const value of values) most = Math.max(most, value);
  const exp = values.map(value => Math.exp(value - most));
  for (const value of exp) sum += value;
  return exp.map(value => value / sum);
}

// Return what the new queries (N, C) read from the values of all positions so far; keep the weights
// as rows (H, context) under `name`.weights. Position t sees positions 0 to t.
function attend(name, q, k, v, width, heads, trace) {
  const size = width / heads, count = q.length / width, start = trace.length, {context} = trace;
  const total = start + count, scale = 1 / Math.sqrt(size), y = new Float64Array(q.length);
  const weights = trace.all(`${name}.weights`, heads * context);
  for (let h = 0; h < heads; h++) {
    const ofHead = x => columns(x, width, h * size, size);
    const keys = trace.keep(`${name}.keys.${h}`, ofHead(k), size);
    const values = trace.all(`${name}.values.${h}`, size); // (D, context): transposed
    ofHead(v).forEach((value, j) => { values[j % size * context + start + Math.floor(j / size)] = value; });
    const scores = linear(ofHead(q), count, {data: keys, shape: [total, size]});
    for (let n = 0; n < count; n++) {
      const seen = start + n + 1, row = softmax(scores.subarray(n * total, n * total + seen).map(score => score * scale));
      scores.fill(0, n * total, (n + 1) * total).set(row, n * total);
      weights.set(row, ((start + n) * heads + h) * context);
    }
    if (trace.off.has(`${name}.${h}`)) continue; // its output stays zero
    const read = linear(scores, count, {data: values, shape: [size, total], stride: context});
    for (let n = 0; n < count; n++) y.set(read.subarray(n * size, (n + 1) * size), n * width + h * size);
  }
  return y;
}

class MeanAttention {
  constructor({}, weights, name) { Object.assign(this, {name, heads: 1, value: weights[`${name}.value.weight`]}); }

  forward(x, count, trace) {
    const v = linear(x, count, this.value);
    return attend(this.name, zeros(v), zeros(v), v, v.length / count, 1, trace); // all scores are 0
  }
}

class SingleHeadAttention {
  constructor({}, weights, name) {
    const [query, key, value] = ["query", "key", "value"].map(part => weights[`${name}.${part}.weight`]);
    Object.assign(this, {name, heads: 1, query, key, value});
  }

  forward(x, count, trace) {
    const [q, k, v] = [this.query, this.key, this.value].map(weight => linear(x, count, weight));
    return attend(this.name, q, k, v, v.length / count, 1, trace);
  }
}

class MultiHeadAttention {
  constructor({heads}, weights, name) {
    const [qkv, output] = ["qkv", "output"].map(part => weights[`${name}.${part}.weight`]);
    Object.assign(this, {name, heads, qkv, output, width: output.shape[0]});
  }

  forward(x, count, trace) {
    const {width} = this, qkv = linear(x, count, this.qkv);
    const [q, k, v] = [0, 1, 2].map(part => columns(qkv, 3 * width, part * width, width));
    const prepare = part => this.prepare(part, trace.length);
    return linear(attend(this.name, prepare(q), prepare(k), v, width, this.heads, trace), count, this.output);
  }

  prepare(queriesOrKeys) { return queriesOrKeys; }
}

// QK-norm, and rotary positions: each pair of channels is rotated by an angle proportional to the position.
class RotaryAttention extends MultiHeadAttention {
  prepare(x, start) {
    const {width, heads} = this, size = width / heads, y = rmsNorm(x, size);
    for (let t = 0; t < y.length / width; t++) for (let i = 0; i < size; i += 2) {
      const angle = Math.fround((start + t) * Math.fround(10000 ** -(i / size))), cos = Math.cos(angle), sin = Math.sin(angle);
      for (let j = t * width + i; j < (t + 1) * width; j += size) {
        const first = y[j], second = y[j + 1];
        y[j] = first * cos - second * sin;
        y[j + 1] = first * sin + second * cos;
      }
    }
    return y;
  }
}

class FeedForward {
  constructor(weights, name, activation) {
    const [hidden, output] = ["hidden", "output"].map(part => weights[`${name}.${part}.weight`]);
    Object.assign(this, {hidden, output, activation});
  }

  forward(x, count) { return linear(linear(x, count, this.hidden).map(this.activation), count, this.output); }
}

// Replace the first half of the channels by those of the previous position (token shift).
function tokenShift(name, x, width, trace) {
  const half = Math.ceil(width / 2), count = x.length / width, y = x.slice();
  const history = trace.keep(name, columns(x, width, 0, half), half);
  for (let t = 0; t < count; t++) {
    const previous = trace.length + t - 1;
    y.set(previous < 0 ? new Float64Array(half) : history.subarray(previous * half, (previous + 1) * half), t * width);
  }
  return y;
}

// The residual stream x gets what the attention adds, then what the MLP adds.
class Block {
  constructor(attention, weights, name) {
    const norms = ["attention_norm", "feed_forward_norm"].map(part => weights[`${name}.${part}.weight`]);
    Object.assign(this, {name, attention, norms, feedForward: this.makeFeedForward(weights, `${name}.feed_forward`)});
  }

  makeFeedForward(weights, name) { return new FeedForward(weights, name, gelu); }

  normed(x, part) { return layerNorm(x, this.norms[part]); }

  forward(x, count, trace) {
    const {name} = this, runs = part => !trace.off.has(name) && !trace.off.has(`${name}.${part}`);
    // The attention runs even if it is switched off: its weights are shown.
    const attended = this.attention.forward(this.normed(x, 0, trace), count, trace);
    if (runs("attention")) x = add(x, attended);
    const mlp = this.feedForward.forward(this.normed(x, 1, trace), count);
    return runs("feed_forward") ? add(x, mlp) : x;
  }
}

class ModernBlock extends Block {
  makeFeedForward(weights, name) { return new FeedForward(weights, name, squaredRelu); }

  normed(x, part, trace) {
    const width = this.feedForward.output.shape[0];
    return tokenShift(`${this.name}.shift.${part}`, rmsNorm(x, width), width, trace);
  }
}

// Return the rows of a table (V, C) for ids.
function lookUp({data, shape: [, width]}, ids) {
  const x = new Float64Array(ids.length * width);
  ids.forEach((id, t) => x.set(data.subarray(id * width, (id + 1) * width), t * width));
  return x;
}

class Bigram {
  constructor({}, weights, name) { Object.assign(this, {layers: [], stages: [], attentions: [], table: weights[`${name}table.weight`]}); }

  forward(ids, trace) { return lookUp(this.table, ids); }
}

// A network with a residual stream: an embedding, layers, and a layer from the stream to logits.
class Stream {
  constructor(layers, weights, name) {
    const [characters, positions] = ["character", "position"].map(part => weights[`${name}embed.${part}.weight`]);
    const layerNames = layers.map(layer => layer.name), stages = [`${name}embed`, ...layerNames];
    const attentions = layers.map(layer => layer.attention ?? layer);
    Object.assign(this, {layers, stages, attentions, characters, positions, width: characters.shape[1]});
  }

  embed(ids, start) {
    const x = lookUp(this.characters, ids), positions = this.positions.data;
    return x.map((value, i) => value + positions[start * this.width + i]);
  }

  forward(ids, trace) {
    let x = this.embed(ids, trace.length);
    trace.keep(this.stages[0], x, this.width);
    for (const layer of this.layers) {
      x = this.apply(layer, x, ids.length, trace);
      trace.keep(layer.name, x, this.width);
    }
    return this.unembed(x, ids.length);
  }

  apply(layer, x, count, trace) { return layer.forward(x, count, trace); }
}

class AttentionLM extends Stream {
  constructor({attention}, weights, name) {
    super([makeAttention(attention, weights, `${name}attention`)], weights, name);
    Object.assign(this, {weight: weights[`${name}unembed.weight`], bias: weights[`${name}unembed.bias`]});
  }

  apply(attention, x, count, trace) {
    const y = attention.forward(x, count, trace);
    return trace.off.has(attention.name) ? zeros(y) : y;
  }

  unembed(x, count) { return linear(x, count, this.weight, this.bias); }
}

function makeBlocks(Kind, {layers, attention}, weights, name) {
  return Array.from({length: layers}, (_, i) => {
    const block = `${name}blocks.${i}`;
    return new Kind(makeAttention(attention, weights, `${block}.attention`), weights, block);
  });
}

class GPT extends Stream {
  constructor(options, weights, name) {
    super(makeBlocks(Block, options, weights, name), weights, name);
    Object.assign(this, {norm: weights[`${name}unembed.0.weight`], weight: weights[`${name}unembed.1.weight`]});
  }

  unembed(x, count) { return linear(layerNorm(x, this.norm), count, this.weight); }
}

class ModernGPT extends Stream {
  constructor(options, weights, name) {
    super(makeBlocks(ModernBlock, options, weights, name), weights, name);
    this.weight = weights[`${name}unembed.character.weight`];
  }

  embed(ids) { return rmsNorm(lookUp(this.characters, ids), this.width); }

  unembed(x, count) { return linear(rmsNorm(x, this.width), count, this.weight); }
}

// The logarithm of the mean of all members' probabilities.
class Ensemble {
  constructor({net, size}, weights, name) {
    this.members = Array.from({length: size}, (_, i) => makeNetwork(net, weights, `${name}members.${i}.`));
    this.layers = this.members.flatMap(member => member.layers);
    this.attentions = this.members.flatMap(member => member.attentions);
    this.stages = []; // the members' streams have nothing in common
  }

  forward(ids, trace) {
    const logits = this.members.map(member => member.forward(ids, trace)), mean = zeros(logits[0]);
    for (let start = 0, size = mean.length / ids.length; start < mean.length; start += size) {
      for (const row of logits) softmax(row.subarray(start, start + size)).forEach((p, i) => { mean[start + i] += p / logits.length; });
    }
    return mean.map(Math.log);
  }
}

const ATTENTIONS = {MeanAttention, SingleHeadAttention, MultiHeadAttention, FusedAttention: MultiHeadAttention, RotaryAttention};
const NETWORKS = {Bigram, AttentionLM, GPT, ModernGPT, Ensemble};

// Both take a class as a config names it: {class_path, init_args}; and weights by name.
const className = spec => spec.class_path.split(".").at(-1);
const makeAttention = (spec, weights, name) => new ATTENTIONS[className(spec)](spec.init_args, weights, name);
const makeNetwork = (spec, weights, name = "") => new NETWORKS[className(spec)](spec.init_args, weights, name);

// Compute the logits of new ids, which continue those of the trace.
function forward(network, ids, trace) {
  const logits = network.forward(ids, trace);
  trace.keep("logits", logits, logits.length / ids.length);
  trace.ids.push(...ids);
}
