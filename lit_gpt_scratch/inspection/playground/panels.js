// Draws the panels from the state and the worker's answers.

const MOST_SURPRISE = 6; // nats; the end of the colour scale
const nameOf = index => DESCRIPTIONS[index].name;
// Return a value for each character of the text, from its position among the characters that the
// model knows; null: it does not know the character.
function byCharacter(known, valueAt) {
  let at = 0;
  return known.map(isKnown => isKnown ? valueAt(at++) : null);
}
const lossesByCharacter = ({known, losses}) => byCharacter(known, at => losses[at]);
const layerName = name => name.replace(/\.?attention$/, "") || "attention";

function drawSurprise() {
  const target = byId("surprise"), texts = [...state.text];
  while (target.children.length > sides().length) target.lastChild.remove();
  sides().forEach((index, side) => {
    const panel = target.children[side] ?? target.appendChild(element("div", {}, element("p", {className: "quiet"}), element("div", {className: "characters"})));
    const read = answers[`read ${side}`], losses = lossesByCharacter(read), mean = meanLoss(read.losses);
    const off = side === 0 && state.off.length ? `, ${state.off.length} ${state.off.length === 1 ? "part" : "parts"} off` : "";
    const title = i => losses[i] === null ? `${nameOf(index)} has no such character` : Number.isFinite(losses[i]) ? `${visible(texts[i])}: ${nats(losses[i])}` : "the first character: nothing predicts it";
    const heat = i => losses[i] === null ? null : Math.min(1, (losses[i] || 0) / MOST_SURPRISE);
    panel.firstChild.textContent = `${nameOf(index)}${off}: mean ${Number.isFinite(mean) ? `${nats(mean)}, ${(mean / Math.LN2).toFixed(2)} bits` : "–"}`;
    showCharacters(panel.lastChild, texts, 0, heat, title);
  });
  const unknown = new Set([...state.text].filter((character, i) => !answers["read 0"].known[i]));
  const {context} = DESCRIPTIONS[state.model], count = [...state.text].length;
  const notes = [`${count} characters.`];
  if (unknown.size) notes.push(`${nameOf(state.model)} was trained without ${[...unknown].map(visible).join(" ")}: left out.`);
  if (count > context) notes.push(`The context is ${context}: each prediction reads the last ${Math.ceil(context / 2)} to ${context} characters.`);
  byId("about").textContent = notes.join(" ");
  markPosition();
}

// Mark the chosen position, and scroll to it in a long text.
function markPosition() {
  for (const cell of all("#surprise span.chosen")) cell.classList.remove("chosen");
  for (const cell of all(`#surprise [data-position="${state.position}"]`)) {
    cell.classList.add("chosen");
    showInBox(cell);
  }
  drawLadderPosition();
}
function drawPosition() {
  const shown = [...state.text].slice(Math.max(0, state.position - 11), state.position + 1).map(visible).join("");
  byId("position").textContent = state.text ? `after “${shown}”, position ${state.position + 1}` : "Type a text.";
  drawNext();
  drawAttention();
  drawLens();
}

// Bars of the distribution before and after the sampling settings. What is cut is shown cut.
function drawNext() {
  byId("bars").replaceChildren(...sides().map((index, side) => {
    const answer = answers[`look ${side}`], {alphabet} = DESCRIPTIONS[index];
    if (!answer) return element("p", {className: "quiet"}, "Nothing is read yet.");
    const before = softmax(answer.logits), after = nextDistribution(answer.logits, samplingSettings());
    const actual = [...state.text][state.position + 1], names = [...alphabet];
    const order = [...before.keys()].sort((a, b) => before[b] - before[a]), shown = order.slice(0, 12);
    const next = names.indexOf(actual);
    if (next >= 0 && !shown.includes(next)) shown[11] = next;
    const rows = shown.map(id => element("tr", {className: [after[id] === 0 ? "cut" : "", id === next ? "actual" : ""].join(" ")},
      element("th", {scope: "row"}, visible(names[id])),
      element("td", {}, element("span", {className: "bar", style: {"--size": `${100 * before[id]}%`}}), element("span", {className: "bar after", style: {"--size": `${100 * after[id]}%`}})),
      element("td", {}, percent(before[id])), element("td", {}, after[id] === 0 ? "cut" : percent(after[id]))));
    const kept = [...after].filter(Boolean).length;
    return element("div", {}, element("table", {}, element("caption", {className: "quiet"}, `${nameOf(index)}: ${kept} of ${names.length} characters can be drawn${actual === undefined ? "" : `; the text goes on with ${visible(actual)}`}`),
      element("thead", {}, element("tr", {}, ...["", "", "model", "drawn"].map(title => element("th", {scope: "col"}, title)))), element("tbody", {}, ...rows)));
  }));
}

// The weights of the chosen head, or the mean of all heads of the layer.
function chosenWeights(heads) {
  if (state.head < heads.length) return heads[state.head];
  return heads[0].map((_, i) => heads.reduce((sum, weights) => sum + weights[i], 0) / heads.length);
}

// Return what a head reads most, from its weights (rows, rows): the distance, or the first
// character, that gets the largest share on average over the rows.
function mostRead(weights, rows) {
  const found = [];
  for (let back = 0; back <= rows / 2; back++) {
    const first = Math.min(Math.max(back, 1), rows - 1);
    let sum = 0;
    for (let t = first; t < rows; t++) sum += weights[t * rows + t - back];
    found.push({what: ["itself", "previous"][back] ?? `${back} back`, share: sum / (rows - first)});
  }
  let sum = 0;
  for (let t = 1; t < rows; t++) sum += weights[t * rows];
  if (rows > 2) found.push({what: "first", share: sum / (rows - 1)});
  return found.reduce((most, one) => one.share > most.share ? one : most);
}

function drawAttention() {
  const look = answers["look 0"], {heads: whole} = answers, layers = look?.attention ?? [];
  byId("attention-panel").classList.toggle("empty", !layers.length);
  if (!layers.length) {
    byId("reads").replaceChildren(look ? `${nameOf(state.model)} has no attention: it reads the chosen character only.` : "");
    byId("heads").replaceChildren();
    byId("heads").drawn = "";
    byId("matrix").width = 0;
    fillMenu(byId("layer"), ["none"], 0);
    fillMenu(byId("head"), ["none"], 0);
    return;
  }
  state.layer = Math.min(state.layer, layers.length - 1);
  const count = layers[state.layer].weights.length;
  state.head = Math.min(state.head, count > 1 ? count : 0);
  fillMenu(byId("layer"), layers.map(({name}) => layerName(name)), state.layer);
  fillMenu(byId("head"), [...Array.from({length: count}, (_, h) => `${h}`), ...(count > 1 ? ["mean of all"] : [])], state.head);
  const colour = colourOf(byId("matrix"));
  drawReads(look, chosenWeights(layers[state.layer].weights));
  if (whole) drawMatrices(look, whole, colour);
}

// The characters that the chosen position can read, and some around them.
function drawReads(look, weights) {
  const target = byId("reads"), characters = [...state.text], read = byCharacter(answers["read 0"].known, at => weights[at - look.start]);
  const first = Math.max(0, read.findIndex(weight => weight >= 0) - 30), shown = characters.slice(first, state.position + 31);
  if (!target.firstElementChild) target.replaceChildren();
  showCharacters(target, shown, first, i => read[i] >= 0 ? Math.sqrt(read[i]) : null, i => read[i] >= 0 ? percent(read[i]) : "not read");
  target.querySelector(".chosen")?.classList.remove("chosen");
  const chosen = target.children[state.position - first];
  chosen?.classList.add("chosen");
  if (chosen) showInBox(chosen);
}

function drawMatrices(look, whole, colour) {
  const {layers, rows, start} = whole;
  const marked = look.position - start, alphas = (values, cut = 0) => (x, y) => x > y ? 0 : Math.sqrt(values[(y + cut) * rows + x + cut]);
  const alpha = alphas(chosenWeights(layers[state.layer].heads));
  paint(byId("matrix"), rows, rows, colour, (x, y) => y === marked && x > y ? -.4 : alpha(x, y));
  const headName = byId("head").selectedOptions[0].textContent;
  byId("matrix").ariaLabel = `Attention of ${layerName(layers[state.layer].name)}, head ${headName}: ${rows} by ${rows} weights`;
  drawHeads(whole, colour, alphas);
}

// A small picture of each head; of a long text, it shows the last positions. All positions of a
// window share these pictures.
function drawHeads({key, layers, rows}, colour, alphas) {
  const target = byId("heads"), small = Math.min(rows, 64), drawn = JSON.stringify([key, state.layer, state.head, colour]);
  if (target.drawn === drawn) return;
  target.drawn = drawn;
  redraw(target, ...layers.flatMap(({name, heads}, layer) => heads.map((values, head) => {
    const canvas = element("canvas"), isChosen = layer === state.layer && head === state.head, {what, share} = mostRead(values, rows);
    paint(canvas, small, small, colour, alphas(values, rows - small));
    const title = `${layerName(name)}, head ${head}`, choosing = () => { Object.assign(state, {layer, head}); remember(); drawAttention(); };
    return element("button", {type: "button", title, ariaLabel: `${title}: reads ${what} most, ${percent(share)}`, ariaPressed: String(isChosen), className: share >= .5 ? "much" : "", onclick: choosing},
      canvas, what, element("br"), percent(share));
  })));
}

function drawLens() {
  const look = answers["look 0"], {alphabet} = DESCRIPTIONS[state.model], names = [...alphabet];
  const rows = (look?.lens ?? []).map(({name, probabilities}) => {
    const order = [...probabilities.keys()].sort((a, b) => probabilities[b] - probabilities[a]).slice(0, 5);
    const entropy = probabilities.reduce((sum, p) => p > 0 ? sum - p * Math.log(p) : sum, 0);
    return element("tr", {}, element("th", {scope: "row"}, name), element("td", {}, ...order.map(id =>
      element("span", {className: "guess", title: percent(probabilities[id]), style: {"--heat": `${100 * probabilities[id]}%`}}, visible(names[id])))),
      element("td", {}, entropy.toFixed(2)));
  });
  const none = look && !rows.length ? `${nameOf(state.model)} has no residual stream of its own.` : "Nothing is read yet.";
  byId("lens").tBodies[0].replaceChildren(...(rows.length ? rows : [element("tr", {}, element("td", {colSpan: 3}, none))]));
}

// The parts of each layer that can be switched off: {layer, parts: [[name, title]]}.
function partRows(spec, prefix = "") {
  const kind = className(spec), options = spec.init_args, heads = name => {
    const count = options.attention.init_args.heads ?? 1;
    return count > 1 ? Array.from({length: count}, (_, h) => [`${name}.${h}`, `head ${h}`]) : [];
  };
  if (kind === "Bigram") return [];
  if (kind === "AttentionLM") return [{layer: "attention", parts: [[`${prefix}attention`, "all"], ...heads(`${prefix}attention`)]}];
  if (kind === "Ensemble") return Array.from({length: options.size}, (_, i) => partRows(options.net, `members.${i}.`)).flat();
  return Array.from({length: options.layers}, (_, i) => {
    const layer = `${prefix}blocks.${i}`;
    return {layer, parts: [[layer, "block"], [`${layer}.attention`, "attention"], ...heads(`${layer}.attention`), [`${layer}.feed_forward`, "MLP"]]};
  });
}
const partNames = index => partRows(DESCRIPTIONS[index].net).flatMap(({parts}) => parts.map(([name]) => name));

const partTitle = (index, part) => partRows(DESCRIPTIONS[index].net).flatMap(({layer, parts}) => parts.map(([name, title]) => name === part ? `${layer} (${title})` : "")).join("");
const signed = value => `${value < 0 ? "−" : "+"}${Math.abs(value).toFixed(2)}`;

// The switches of all parts. Once the costs are measured, a darker switch is a more expensive part.
function drawParts() {
  const costs = answers.costs?.index === state.model && answers.costs.text === state.text ? answers.costs.values : {};
  const most = Math.max(.01, ...Object.values(costs)), rows = partRows(DESCRIPTIONS[state.model].net).map(({layer, parts}) => element("fieldset", {}, element("legend", {}, layer), ...parts.map(([name, title]) =>
    element("label", {style: {"--heat": `${Math.max(0, 70 * (costs[name] ?? 0) / most)}%`}}, element("input", {type: "checkbox", checked: !state.off.includes(name), onchange: ({target}) => switchPart(name, target.checked)}), title,
      ...(name in costs ? [element("small", {}, ` ${signed(costs[name])}`)] : [])))));
  redraw(byId("parts"), ...(rows.length ? rows : [element("p", {className: "quiet"}, "A table of pairs: there is nothing to take apart.")]));
  byId("measure").disabled = !rows.length;
  byId("important").textContent = Object.keys(costs).length ? importantParts(costs) : "";
}
function importantParts(costs) {
  const names = partNames(state.model), measured = Object.keys(costs).length;
  if (measured < names.length) return `Measured: ${measured} of ${names.length}.`;
  const sentence = (kind, among) => {
    const best = among.reduce((a, b) => costs[b] > costs[a] ? b : a);
    return `The most important ${kind} for this text: ${partTitle(state.model, best)}. Without it, the loss changes by ${signed(costs[best])} nats.`;
  };
  const heads = names.filter(name => /attention\.\d+$/.test(name));
  return [...(heads.length ? [sentence("head", heads)] : []), sentence("part", names)].join(" ");
}

function drawCost() {
  const now = meanLoss(answers["read 0"].losses), whole = answers.whole && meanLoss(answers.whole.losses);
  byId("cost").textContent = !state.off.length ? `All parts are on: the text costs ${nats(now)} for each character.`
    : `Without ${state.off.map(part => partTitle(state.model, part)).join(", ")}: ${nats(now)} for each character, ${signed(now - whole)} against ${nats(whole)} with all parts.`;
}

// Draw at most twelve times a second. To lay out the text takes as long as to compute a character.
let drawing = 0;
function drawWrittenSoon() { drawing ||= setTimeout(drawWritten, 80); }
function drawWritten() {
  drawing = 0;
  const characters = written.map(({character}) => character);
  byId("before").textContent = [...state.text].slice(-20).join("");
  showCharacters(byId("drawn"), characters, 0, () => 0, () => "");
  if (byId("write").textContent === "stop") byId("written").scrollTop = byId("written").scrollHeight;
  const length = repeated(characters), why = state.temperature === 0 ? " With temperature 0, the same text always goes on in the same way." : "";
  const note = length ? `It repeats: the last ${length} characters are the same as the ${length} before.${why}` : "";
  if (byId("loop").textContent !== note) byId("loop").textContent = note;
}

// Return how long a piece is that the end of a text repeats, at least twice and for 60 characters.
// Return 0 if nothing repeats.
function repeated(characters) {
  for (let length = 1; 2 * length <= characters.length; length++) {
    const first = characters.length - Math.max(2 * length, 60) + length;
    let i = characters.length - 1;
    while (i >= first && characters[i] === characters[i - length]) i--;
    if (i < first && first >= length) return length;
  }
  return 0;
}

let inspected = -1;
function showAlternatives(i) {
  if (!written[i]) return;
  inspected = i;
  const {character, probabilities} = written[i], names = [...DESCRIPTIONS[state.model].alphabet];
  const order = [...probabilities.keys()].filter(id => probabilities[id]).sort((a, b) => probabilities[b] - probabilities[a]).slice(0, 6);
  byId("alternatives").textContent = `${visible(character)} was drawn from: ${order.map(id => `${visible(names[id])} ${percent(probabilities[id])}`).join(", ")}`;
  for (const cell of all("#drawn .chosen")) cell.classList.remove("chosen");
  const cell = byId("drawn").children[i];
  cell?.classList.add("chosen");
  if (cell) showInBox(cell);
}
byId("drawn").onpointerover = event => showAlternatives(pointedAt(event));
byId("written").onkeydown = event => {
  const step = {ArrowLeft: -1, ArrowRight: 1}[event.key];
  if (!step) return;
  event.preventDefault();
  showAlternatives(Math.max(0, Math.min(written.length - 1, inspected + step)));
};

function drawLadder() {
  const {ladder} = answers, means = ladder.map(read => meanLoss(read.losses)), most = Math.max(...means.filter(Number.isFinite), .01);
  const byModel = answers.byModel = ladder.map(lossesByCharacter), texts = [...state.text];
  redraw(byId("ladder").tBodies[0], ...DESCRIPTIONS.map(({name, parameters}, index) => {
    const strip = element("canvas", {className: "strip", role: "img", ariaLabel: `${name}: loss of each character`});
    strip.onpointermove = strip.onpointerdown = ({offsetX}) => {
      const position = Math.floor(offsetX / strip.clientWidth * texts.length);
      if (position !== state.position) choose(position);
    };
    return element("tr", {}, element("th", {scope: "row"}, element("button", {type: "button", onclick: () => changeModel(index)}, name)), element("td", {}, parameters.toLocaleString("en")),
      element("td", {}, element("span", {className: "bar", style: {"--size": `${100 * means[index] / most}%`}}), Number.isFinite(means[index]) ? nats(means[index]) : "–"), element("td", {}, strip), element("td"));
  }));
  const spread = texts.map((_, i) => {
    const known = byModel.map(losses => losses[i]).filter(loss => loss !== null && Number.isFinite(loss));
    return known.length > 1 ? Math.max(...known) - Math.min(...known) : 0;
  });
  const order = [...spread.keys()].sort((a, b) => spread[b] - spread[a]).slice(0, 5).filter(i => spread[i] > .5);
  redraw(byId("disagreement"), ...(order.length ? ["They disagree most about the last character of ", ...order.map(i =>
    element("button", {type: "button", title: `difference ${nats(spread[i])}`, onclick: () => { hold(true); choose(i - 1); }}, `${texts.slice(Math.max(0, i - 4), i).map(visible).join("")}[${visible(texts[i])}]`))] : []));
  drawLadderPosition();
}

// The strips with the chosen position, and the probability that each model gives to the next character.
function drawLadderPosition() {
  if (answers.ladderText !== state.text) return;
  const {byModel} = answers, {position} = state, next = [...state.text][position + 1], count = byModel[0].length;
  byId("next-title").textContent = next === undefined ? "" : `gives ${visible(next)}`;
  const rows = [...byId("ladder").tBodies[0].rows], colour = colourOf(rows[0].querySelector(".strip"));
  rows.forEach((row, index) => {
    const losses = byModel[index], loss = losses[position + 1];
    paint(row.querySelector(".strip"), count, 5, colour, (x, y) => y === 4 && x === position ? -1 : Math.min(1, (losses[x] || 0) / MOST_SURPRISE));
    row.cells[4].textContent = next === undefined || !Number.isFinite(loss ?? NaN) ? "" : `${visible(next)} ${percent(Math.exp(-loss))}`;
    row.querySelector("button").ariaPressed = String(index === state.model);
  });
}
