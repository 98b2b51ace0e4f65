// The state of the page, its controls, and the requests to the worker. panels.js draws the answers.

const SLIDERS = {temperature: 1, topK: 65, topP: 1, minP: 0, speed: 30};
const DEFAULTS = {model: START.model, other: "", text: START.text, position: -1, layer: 0, head: 0, off: [], seed: 1337, ...SLIDERS};
const state = {...DEFAULTS};
const answers = {}; // the newest answers, by kind and side

// The worker, from the sources in this page.
const sources = ["engine", "worker"].map(id => byId(id).textContent).join("\n");
const worker = new Worker(URL.createObjectURL(new Blob([sources], {type: "text/javascript"})));
const pending = new Map();
let count = 0;
worker.onmessage = ({data: {number, result, error}}) => {
  const {resolve, reject} = pending.get(number);
  pending.delete(number);
  if (error === "replaced") return; // a newer request is under way
  if (error) reject(new Error(error)); else resolve(result);
};
function ask(kind, request) {
  return new Promise((resolve, reject) => {
    count += 1;
    pending.set(count, {resolve, reject});
    worker.postMessage({kind, number: count, ...request});
  });
}
ask("start", {descriptions: DESCRIPTIONS});

// The models that are shown: one, or two side by side.
const sides = () => state.other === "" ? [state.model] : [state.model, Number(state.other)];
const knownOf = (index, characters) => characters.filter(character => DESCRIPTIONS[index].alphabet.includes(character));

// The position in the known characters of a model, for one in the text; -1: it is before the first.
function positionOf(index) {
  const characters = [...state.text].slice(0, state.position + 1);
  return knownOf(index, characters).length - 1;
}

// Read the text with all models that are shown, then look at the chosen position.
async function readText() {
  const {text} = state, characters = [...text];
  if (state.position < 0 || state.position >= characters.length) state.position = characters.length - 1;
  remember();
  await Promise.all(sides().map(async (index, side) => {
    const off = side === 0 ? state.off : [];
    answers[`read ${side}`] = {index, text, ...await ask(`read ${side}`, {name: "read", index, text, off})};
  }));
  drawSurprise();
  await look();
  if (state.off.length) answers.whole = await ask("whole", {name: "read", index: state.model, text, off: []});
  drawCost();
  await climb();
}

async function look() {
  const {text} = state;
  await Promise.all(sides().map(async (index, side) => {
    const position = positionOf(index), off = side === 0 ? state.off : [];
    const answer = position < 0 ? null : await ask(`look ${side}`, {name: "look", index, text, off, position});
    answers[`look ${side}`] = answer && {index, position, ...answer};
  }));
  // All positions of a window share the matrices of its heads.
  const {model: index, off} = state, chosen = answers["look 0"], key = chosen && JSON.stringify([index, text, off, chosen.start]);
  if (!chosen) answers.heads = null;
  else if (answers.heads?.key !== key) answers.heads = {key, ...await ask("heads", {index, text, off, position: chosen.position})};
  drawPosition();
}

// Read the text with every model of the file.
async function climb() {
  const {text} = state;
  const found = [];
  for (const index of DESCRIPTIONS.keys()) found.push(await ask(`ladder ${index}`, {name: "read", index, text, off: []}));
  if (text !== state.text) return;
  Object.assign(answers, {ladder: found, ladderText: text});
  drawLadder();
}

function report(error) { byId("about").textContent = `The page cannot go on: ${error.message}`; }

let soon = 0;
function readSoon() {
  clearTimeout(soon);
  soon = setTimeout(() => readText().catch(report), 30);
}

function choose(position) {
  const last = [...state.text].length - 1;
  state.position = Math.max(0, Math.min(last, position));
  remember();
  markPosition();
  look().catch(report);
}

// The link of the page keeps what differs from the defaults, so that it can be sent. Browsers slow
// down pages that change it often: it changes once nothing has changed for a while.
let later = 0;
function remember() {
  clearTimeout(later);
  later = setTimeout(changeLink, 200);
}
function changeLink() {
  const changed = Object.entries(state).filter(([key, value]) => JSON.stringify(value) !== JSON.stringify(DEFAULTS[key]));
  try {
    history.replaceState(null, "", changed.length ? `#${encodeURIComponent(JSON.stringify(Object.fromEntries(changed)))}` : "#");
  } catch { /* a page inside a notebook has no address */ }
}
function recall() {
  try {
    const kept = JSON.parse(decodeURIComponent(location.hash.slice(1)) || "{}");
    for (const [key, value] of Object.entries(kept)) if (typeof value === typeof DEFAULTS[key] || key === "other") state[key] = value;
  } catch { /* not a link of this page */ }
  if (!DESCRIPTIONS[state.model]) state.model = 0;
  if (!DESCRIPTIONS[state.other]) state.other = "";
  if (!Array.isArray(state.off)) state.off = [];
}

// Controls.
function showControls() {
  byId("text").value = state.text;
  redraw(byId("models"), ...DESCRIPTIONS.map(({name}, index) => element("label", {},
    element("input", {type: "radio", name: "model", value: index, checked: index === state.model, onchange: () => changeModel(index)}), name)));
  byId("other").replaceChildren(element("option", {value: ""}, "nothing"), ...DESCRIPTIONS.map(({name}, index) => element("option", {value: index}, name)));
  byId("other").value = state.other;
  byId("topK").max = DESCRIPTIONS[state.model].alphabet.length;
  for (const id of Object.keys(SLIDERS)) showSlider(id);
  byId("seed").value = state.seed;
  drawParts();
}
function showSlider(id) {
  byId(id).value = state[id];
  const isAll = id === "topK" && state.topK >= DESCRIPTIONS[state.model].alphabet.length;
  byId(id).nextElementSibling.textContent = isAll ? "all" : state[id];
}

function changeModel(index) {
  Object.assign(state, {model: index, off: [], layer: 0, head: 0});
  stopWriting();
  showControls();
  readText().catch(report);
}
byId("other").onchange = ({target}) => { state.other = target.value; readText().catch(report); };
byId("text").oninput = ({target}) => {
  state.text = target.value;
  hold(false);
  state.position = [...state.text.slice(0, target.selectionEnd)].length - 1;
  readSoon();
};
for (const id of Object.keys(SLIDERS)) byId(id).oninput = ({target}) => {
  state[id] = Number(target.value);
  showSlider(id);
  remember();
  if (id !== "speed") drawNext();
};
byId("seed").oninput = ({target}) => { state.seed = Math.max(0, Math.floor(Number(target.value)) || 0); remember(); };
byId("layer").onchange = ({target}) => { Object.assign(state, {layer: Number(target.value), head: 0}); remember(); drawAttention(); };
byId("head").onchange = ({target}) => { state.head = Number(target.value); remember(); drawAttention(); };

function switchPart(name, isOn) {
  state.off = isOn ? state.off.filter(part => part !== name) : [...state.off, name];
  drawParts();
  readText().catch(report);
}
byId("restore").onclick = () => { state.off = []; answers.costs = null; drawParts(); readText().catch(report); };
byId("measure").onclick = async () => {
  const {text, model: index} = state, names = partNames(index), mean = read => meanLoss(read.losses);
  const whole = mean(await ask("cost", {name: "read", index, text, off: []})), costs = {};
  for (const name of names) {
    costs[name] = mean(await ask("cost", {name: "read", index, text, off: [name]})) - whole;
    if (text !== state.text || index !== state.model) return;
    answers.costs = {text, index, values: {...costs}};
    drawParts();
  }
};

// Pointing at a character chooses it, unless a click holds another one. Arrows move, too.
let held = false;
function hold(isHeld) { byId("surprise").classList.toggle("held", held = isHeld); }
function pointedAt({target}) {
  const {position} = target.dataset ?? {};
  return position === undefined ? null : Number(position);
}
byId("surprise").onpointerover = event => {
  const position = pointedAt(event);
  if (position !== null && position !== state.position && !held) choose(position);
};
byId("reads").onclick = event => {
  const position = pointedAt(event);
  if (position === null) return;
  hold(true);
  choose(position);
};
byId("surprise").onclick = event => {
  const position = pointedAt(event);
  if (position === null) return;
  hold(!held || position !== state.position);
  choose(position);
};
byId("surprise").onkeydown = event => {
  const step = {ArrowLeft: -1, ArrowRight: 1, ArrowUp: -20, ArrowDown: 20, Home: -1e9, End: 1e9}[event.key];
  if (!step) return;
  event.preventDefault();
  choose(state.position + step);
};

// Writing: one request for each character, so that it can be stopped at any time.
const written = []; // {character, probabilities} for each written character
let writing = 0, uniform = null;
function stopWriting() { writing += 1; byId("write").textContent = "write"; }
async function writeOne() {
  uniform ??= uniformNumbers(state.seed);
  const {model: index, off} = state, settings = samplingSettings();
  const text = state.text + written.map(({character}) => character).join("");
  const now = writing, answer = await ask("next", {index, text: text || "\n", off, settings, uniform: uniform()});
  if (now !== writing) return;
  written.push(answer);
  drawWrittenSoon();
}
async function write() {
  const now = writing += 1;
  byId("write").textContent = "stop";
  let due = performance.now();
  while (now === writing && written.length < 5000) {
    await writeOne();
    due = Math.max(due + 1000 / state.speed, performance.now() - 100);
    const wait = due - performance.now();
    if (wait > 1) await new Promise(resolve => setTimeout(resolve, wait));
  }
  if (now === writing) stopWriting();
}
function clearWritten() { stopWriting(); written.length = 0; uniform = null; inspected = -1; drawWritten(); }
byId("write").onclick = () => { if (byId("write").textContent === "stop") stopWriting(); else write().catch(report); };
byId("step").onclick = () => { stopWriting(); writeOne().catch(report); };
byId("clear").onclick = clearWritten;
byId("keep").onclick = () => {
  state.text += written.map(({character}) => character).join("");
  state.position = -1;
  clearWritten();
  byId("text").value = state.text;
  readText().catch(report);
};
const samplingSettings = () => ({temperature: state.temperature, topK: state.topK, topP: state.topP, minP: state.minP});

byId("theme").onclick = () => {
  const root = document.documentElement.style, prefersDark = matchMedia("(prefers-color-scheme: dark)").matches;
  root.colorScheme = (root.colorScheme || (prefersDark ? "dark" : "light")) === "dark" ? "light" : "dark";
  drawAttention();
  drawLadderPosition();
};
