// Draws the panels from the state and the worker's answers.

const MOST_SURPRISE = 6; // nats; the end of the colour scale
const nats = value => `${value.toFixed(2)} nats`;
const percent = value => value >= .0995 ? `${(100 * value).toFixed(0)} %` : `${(100 * value).toFixed(1)} %`;
const visible = character => ({"\n": "⏎", " ": "␣", "\t": "⇥"}[character] ?? character);
const nameOf = index => DESCRIPTIONS[index].name;
const meanLoss = losses => {
  const known = [...losses].filter(Number.isFinite);
  return known.length ? known.reduce((sum, loss) => sum + loss) / known.length : NaN;
};

// Return an element for each character of a text. `heat` is a number from 0 to 1, or null: unknown.
function characters(text, heat, title, choosing) {
  return [...text].map((character, i) => {
    const known = heat(i), cell = element("span", {
      title: title(i), className: known === null ? "unknown" : "", style: {"--heat": `${100 * (known ?? 0)}%`}, dataset: {position: i},
    }, character === "\n" ? "⏎\n" : character);
    if (choosing) cell.onpointerenter = () => choosing(i);
    return cell;
  });
}

// Return a value for each character of the text, from its position among the characters that the
// model knows; null: it does not know the character.
function byCharacter(known, valueAt) {
  let at = 0;
  return known.map(isKnown => isKnown ? valueAt(at++) : null);
}
const lossesByCharacter = ({known, losses}) => byCharacter(known, at => losses[at]);
const layerName = name => name.replace(/\.?attention$/, "") || "attention";

function drawSurprise() {
  const texts = sides().map((index, side) => {
    const read = answers[`read ${side}`], losses = lossesByCharacter(read), mean = meanLoss(read.losses);
    const off = side === 0 && state.off.length ? `, ${state.off.length} parts off` : "";
    const title = i => losses[i] === null ? `${nameOf(index)} has no such character` : Number.isFinite(losses[i]) ? `${visible([...state.text][i])}: ${nats(losses[i])}` : "the first character: nothing predicts it";
    const heat = i => losses[i] === null ? null : Math.min(1, (losses[i] || 0) / MOST_SURPRISE);
    return element("div", {}, element("p", {className: "quiet"}, `${nameOf(index)}${off}: mean ${Number.isFinite(mean) ? `${nats(mean)}, ${(mean / Math.LN2).toFixed(2)} bits` : "–"}`),
      element("div", {className: "characters"}, ...characters(state.text, heat, title, choose)));
  });
  byId("surprise").replaceChildren(...texts);
  const unknown = new Set([...state.text].filter((character, i) => !answers["read 0"].known[i]));
  const {context} = DESCRIPTIONS[state.model], count = [...state.text].length;
  const notes = [`${count} characters.`];
  if (unknown.size) notes.push(`${nameOf(state.model)} was trained without ${[...unknown].map(visible).join(" ")}: left out.`);
  if (count > context) notes.push(`The context is ${context}: each prediction reads the last ${Math.ceil(context / 2)} to ${context} characters.`);
  byId("about").textContent = notes.join(" ");
  markPosition();
}

function markPosition() {
  for (const cell of all("#surprise span.chosen")) cell.classList.remove("chosen");
  for (const cell of all(`#surprise [data-position="${state.position}"]`)) cell.classList.add("chosen");
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

// Replace the options of a menu, and choose one.
function fillMenu(menu, titles, chosen) {
  menu.replaceChildren(...titles.map((title, value) => element("option", {value}, title)));
  menu.value = chosen;
  menu.disabled = titles.length < 2;
}

// The weights of the chosen head, or the mean of all heads of the layer.
function chosenWeights(heads) {
  if (state.head < heads.length) return heads[state.head];
  return heads[0].map((_, i) => heads.reduce((sum, weights) => sum + weights[i], 0) / heads.length);
}

function drawAttention() {
  const look = answers["look 0"], {heads: whole} = answers, layers = look?.attention ?? [];
  byId("attention-panel").classList.toggle("empty", !layers.length);
  if (!layers.length) {
    byId("reads").replaceChildren(look ? `${nameOf(state.model)} has no attention: it reads the chosen character only.` : "");
    byId("heads").replaceChildren();
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

  const weights = chosenWeights(layers[state.layer].weights);
  const read = byCharacter(answers["read 0"].known, at => weights[at - look.start]), weightOf = i => read[i] ?? null;
  byId("reads").replaceChildren(...characters(state.text, i => weightOf(i) === null ? null : Math.sqrt(weightOf(i)),
    i => weightOf(i) === null ? "not read" : percent(weightOf(i))));
  byId("reads").children[state.position]?.classList.add("chosen");

  if (!whole) return;
  paint(byId("matrix"), chosenWeights(whole.layers[state.layer].heads), whole.rows, look.position - whole.start);
  byId("matrix").ariaLabel = `Attention of layer ${state.layer}, head ${state.head}: ${whole.rows} by ${whole.rows} weights`;
  byId("heads").replaceChildren(...whole.layers.flatMap(({name, heads}, layer) => heads.map((values, head) => {
    const canvas = element("canvas"), isChosen = layer === state.layer && head === state.head;
    paint(canvas, values, whole.rows, -1);
    const title = `${layerName(name)}, head ${head}`;
    return element("button", {type: "button", title, ariaLabel: title, ariaPressed: String(isChosen), onclick: () => { Object.assign(state, {layer, head}); remember(); drawAttention(); }}, canvas);
  })));
}

// Paint weights (rows, rows), one pixel each; mark a row.
function paint(canvas, values, rows, marked) {
  Object.assign(canvas, {width: rows, height: rows});
  const context = canvas.getContext("2d"), image = context.createImageData(rows, rows);
  const [red, green, blue] = getComputedStyle(byId("matrix")).color.match(/\d+/g).map(Number);
  for (let i = 0; i < values.length; i++) image.data.set([red, green, blue, 255 * Math.sqrt(Math.max(0, Math.min(1, values[i])))], 4 * i);
  if (marked >= 0) for (let t = marked + 1; t < rows; t++) image.data.set([230, 159, 0, 90], 4 * (marked * rows + t));
  context.putImageData(image, 0, 0);
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

function drawParts() {
  const costs = answers.costs?.index === state.model && answers.costs.text === state.text ? answers.costs.values : {};
  const rows = partRows(DESCRIPTIONS[state.model].net).map(({layer, parts}) => element("fieldset", {}, element("legend", {}, layer), ...parts.map(([name, title]) =>
    element("label", {}, element("input", {type: "checkbox", checked: !state.off.includes(name), onchange: ({target}) => switchPart(name, target.checked)}), title,
      ...(name in costs ? [element("small", {}, ` ${costs[name] < 0 ? "−" : "+"}${Math.abs(costs[name]).toFixed(2)}`)] : [])))));
  byId("parts").replaceChildren(...(rows.length ? rows : [element("p", {className: "quiet"}, "A table of pairs: there is nothing to take apart.")]));
  byId("measure").disabled = !rows.length;
}

function drawCost() {
  const now = meanLoss(answers["read 0"].losses), whole = answers.whole && meanLoss(answers.whole.losses);
  byId("cost").textContent = !state.off.length ? `All parts are on: the text costs ${nats(now)} for each character.`
    : `Without ${state.off.join(", ")}: ${nats(now)} for each character, ${now >= whole ? "+" : "−"}${Math.abs(now - whole).toFixed(2)} against ${nats(whole)} with all parts.`;
}

function drawWritten() {
  const cells = characters(written.map(({character}) => character).join(""), () => 0, () => "", showAlternatives);
  byId("written").replaceChildren(element("span", {className: "quiet"}, [...state.text].slice(-20).join("")), ...cells);
}
let inspected = -1;
function showAlternatives(i) {
  if (!written[i]) return;
  inspected = i;
  const {character, probabilities} = written[i], names = [...DESCRIPTIONS[state.model].alphabet];
  const order = [...probabilities.keys()].filter(id => probabilities[id]).sort((a, b) => probabilities[b] - probabilities[a]).slice(0, 6);
  byId("alternatives").textContent = `${visible(character)} was drawn from: ${order.map(id => `${visible(names[id])} ${percent(probabilities[id])}`).join(", ")}`;
  for (const cell of all("#written .chosen")) cell.classList.remove("chosen");
  byId("written").children[i + 1].classList.add("chosen");
}
byId("written").onkeydown = event => {
  const step = {ArrowLeft: -1, ArrowRight: 1}[event.key];
  if (!step) return;
  event.preventDefault();
  showAlternatives(Math.max(0, Math.min(written.length - 1, inspected + step)));
};

function drawLadder() {
  const {ladder} = answers, means = ladder.map(read => meanLoss(read.losses)), most = Math.max(...means.filter(Number.isFinite), .01);
  const byModel = ladder.map(lossesByCharacter);
  byId("ladder").tBodies[0].replaceChildren(...DESCRIPTIONS.map(({name, parameters}, index) => {
    const losses = byModel[index];
    const strip = element("div", {className: "strip"}, ...losses.map((loss, i) => element("span", {
      title: `${visible([...state.text][i])}: ${loss === null ? "unknown" : Number.isFinite(loss) ? nats(loss) : "–"}`,
      style: {"--heat": `${100 * Math.min(1, (loss || 0) / MOST_SURPRISE)}%`}, onpointerenter: () => choose(i),
    })));
    return element("tr", {}, element("th", {scope: "row"}, name), element("td", {}, parameters.toLocaleString("en")),
      element("td", {}, element("span", {className: "bar", style: {"--size": `${100 * means[index] / most}%`}}), Number.isFinite(means[index]) ? nats(means[index]) : "–"), element("td", {}, strip));
  }));
  const spread = [...state.text].map((_, i) => {
    const known = byModel.map(losses => losses[i]).filter(loss => loss !== null && Number.isFinite(loss));
    return known.length > 1 ? Math.max(...known) - Math.min(...known) : 0;
  });
  const order = [...spread.keys()].sort((a, b) => spread[b] - spread[a]).slice(0, 5).filter(i => spread[i] > .5);
  byId("disagreement").replaceChildren(...(order.length ? ["They disagree most at ", ...order.map(i =>
    element("button", {type: "button", title: `difference ${nats(spread[i])}`, onclick: () => choose(i)}, `${[...state.text].slice(Math.max(0, i - 4), i).map(visible).join("")}[${visible([...state.text][i])}]`))] : []));
}

// The tour.
const TOUR = [
  ["#text-panel", "Type", "A model reads your text and gives each character a probability. The colour shows how surprised it was: the loss in nats, -log of the probability. Change the text and watch."],
  ["#next-panel", "What comes next", "These are the characters that the model expects after the chosen position. Temperature, top-k, top-p and min-p decide which of them can be drawn."],
  ["#attention-panel", "What it reads", "Attention weights say how much the chosen position reads each earlier character. Each head reads in its own way: choose one from the small pictures."],
  ["#parts-panel", "Take it apart", "Switch off a head, an attention, an MLP or a whole block. The loss shows what the part was good for."],
  ["#ladder-panel", "Climb the ladder", "All models of this file read the same text. Each rung adds one idea. Look where the small ones fail."],
];
let tourStop = 0;
function showStop() {
  const [target, title, text] = TOUR[tourStop];
  for (const panel of all(".toured")) panel.classList.remove("toured");
  document.querySelector(target).classList.add("toured");
  document.querySelector(target).scrollIntoView({block: "center"});
  byId("guide-title").textContent = title;
  byId("guide-text").textContent = text;
  byId("guide-count").textContent = `${tourStop + 1} of ${TOUR.length}`;
  byId("guide-next").textContent = tourStop + 1 < TOUR.length ? "next" : "done";
}
function endTour() {
  byId("guide").close();
  for (const panel of all(".toured")) panel.classList.remove("toured");
}
byId("tour").onclick = () => { tourStop = 0; byId("guide").show(); showStop(); byId("guide-next").focus(); };
byId("guide-next").onclick = () => { tourStop += 1; if (tourStop < TOUR.length) showStop(); else endTour(); };
byId("guide-end").onclick = endTour;

recall();
showControls();
readText().catch(report);
addEventListener("hashchange", () => { Object.assign(state, DEFAULTS); recall(); showControls(); readText().catch(report); });
