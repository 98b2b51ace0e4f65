// The worker: computes beside the page, so that the page never waits. It answers one request after
// the other, each with the number that it came with. A newer request of a kind replaces older ones.

const models = []; // made when they are first needed
let descriptions = [];
const newest = {}; // number of the newest request of each kind
let waiting = Promise.resolve();

class Replaced extends Error {}

// A message to ourselves lets the messages before it arrive; a timer would wait for 4 ms.
const {port1, port2} = new MessageChannel(), paused = [];
port1.onmessage = () => paused.shift()();

// Let other messages arrive; stop if one of them replaces this request.
async function pause(kind, number) {
  await new Promise(resolve => { paused.push(resolve); port2.postMessage(null); });
  if (newest[kind] !== number) throw new Replaced();
}

const model = index => models[index] ??= Model.open(descriptions[index]); // a promise

// Read a text; return the model, its windows, and the window of a position.
async function readAt({index, text, off, position}, rest) {
  const reader = await model(index), windows = await reader.read(reader.encode([...text]), off, rest);
  return {reader, windows, ...reader.windowOf(windows, position)};
}

// Return the loss of each character in nats; NaN for those that nothing predicts.
function losses(reader, windows, ids) {
  return Float32Array.from(ids, (id, position) => {
    return position === 0 ? NaN : -Math.log(softmax(reader.logits(windows, position - 1))[id]);
  });
}

const requests = {
  start(request) { descriptions = request.descriptions; },

  async read({index, text, off}, rest) {
    const reader = await model(index), characters = [...text], ids = reader.encode(characters);
    const windows = await reader.read(ids, off, rest);
    return {known: characters.map(character => reader.idOf.has(character)), losses: losses(reader, windows, ids)};
  },

  // What the network computes at a position, counted among the known characters.
  async look(request, rest) {
    const {reader, windows, trace, start} = await readAt(request, rest), {position} = request;
    const row = position - start, {network, context} = reader;
    const attention = network.attentions.map(({name, heads}) => {
      const weights = trace.rows.get(`${name}.weights`);
      return {name, weights: Array.from({length: heads}, (_, h) => {
        const first = (row * heads + h) * context;
        return weights.slice(first, first + row + 1);
      })};
    });
    const lens = network.stages.map(name => {
      const x = trace.rows.get(name).subarray(row * network.width, (row + 1) * network.width);
      return {name, probabilities: softmax(network.unembed(x, 1))};
    });
    return {start, logits: reader.logits(windows, position).slice(), attention, lens};
  },

  // All weights of every head in the window of a position, (rows, rows) each.
  async heads(request, rest) {
    const {reader, trace, start, end} = await readAt(request, rest);
    const rows = end - start, {network: {attentions}, context} = reader;
    return {start, rows, layers: attentions.map(({name, heads}) => ({
      name, heads: Array.from({length: heads}, (_, h) => {
        const weights = new Float32Array(rows * rows), all = trace.rows.get(`${name}.weights`);
        for (let t = 0; t < rows; t++) weights.set(all.subarray((t * heads + h) * context, (t * heads + h) * context + t + 1), t * rows);
        return weights;
      }),
    }))};
  },

  // Draw the next character.
  async next({index, text, off, settings, uniform}, rest) {
    const reader = await model(index), ids = reader.encode([...text]), windows = await reader.read(ids, off, rest);
    const probabilities = nextDistribution(reader.logits(windows, ids.length - 1), settings);
    return {character: reader.alphabet[draw(probabilities, uniform)], probabilities};
  },
};

onmessage = ({data: {kind, number, ...request}}) => {
  newest[kind] = number;
  waiting = waiting.then(async () => {
    try {
      if (newest[kind] !== number) throw new Replaced();
      postMessage({number, result: await requests[request.name ?? kind](request, () => pause(kind, number))});
    } catch (error) {
      postMessage({number, error: error instanceof Replaced ? "replaced" : String(error)});
    }
  });
};
