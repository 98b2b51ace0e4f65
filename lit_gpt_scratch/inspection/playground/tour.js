// The tour, and tasks that a learner can do in the page. Then: start.

const TOUR = [
  ["#text-panel", "Type", "A model reads your text and gives each character a probability. The colour shows how surprised it was: the loss in nats, -log of the probability. Change the text and watch."],
  ["#next-panel", "What comes next", "These are the characters that the model expects after the chosen position. Temperature, top-k, top-p and min-p decide which of them can be drawn."],
  ["#attention-panel", "What it reads", "Attention weights say how much the chosen position reads each earlier character. Each head reads in its own way: choose one from the small pictures."],
  ["#parts-panel", "Take it apart", "Switch off a head, an attention, an MLP or a whole block. The loss shows what the part was good for."],
  ["#ladder-panel", "Climb the ladder", "All models of this file read the same text. Each rung adds one idea. Look where the small ones fail. Then try the five tasks."],
];
const attentionKind = index => DESCRIPTIONS[index].net.init_args.attention ? className(DESCRIPTIONS[index].net.init_args.attention) : "";
const newestOf = test => DESCRIPTIONS.findLastIndex((_, index) => test(index));
const kindOf = index => className(DESCRIPTIONS[index].net);
const BIGRAM = newestOf(index => kindOf(index) === "Bigram"), MEAN = newestOf(index => attentionKind(index) === "MeanAttention");
// A model with heads. ModernGPT comes second: its token shift gives each position the previous character, so no head has to read it.
const HEADS = [index => kindOf(index) === "GPT", index => partNames(index).length > 1].map(newestOf).find(index => index >= 0) ?? -1;
const BEST = newestOf(index => ![BIGRAM, MEAN].includes(index));

// Each with the panel to look at, and what is set before.
const TASKS = [
  ["#attention-panel", "Find a head that reads the previous character", "Each small picture is a head. The words under it say what it reads most. Click on a head, then on characters of the text above the pictures: the darkest character is what it reads.", {model: HEADS}],
  ["#text-panel", "See what the bigram cannot know", "The bigram sees one character only. Point at two places of the text that have the same character. Are the bars of the bigram different? Are those of the other model?", {model: BIGRAM, other: BEST}],
  ["#text-panel", "See where the mean fails", "Replace the text by “was”, then by “saw”. Does the mean expect other characters next? Does the bigram? “The ladder” at the end of the page shows the loss of both on a longer text.", {model: MEAN, other: BIGRAM}],
  ["#parts-panel", "Switch off the most important head", "Press “cost of each part”. Then switch off the head that is named. The loss is shown there; the colours of the text change, too.", {model: HEADS}],
  ["#write-panel", "Make it write in a loop", "Set the temperature (in “Next character”) to 0: the model then always takes the most likely character. Press “write” and wait. More characters per second save time.", {}],
].filter(([, , , set]) => Object.values(set).every(index => index >= 0));

let stops = TOUR, stop = 0;
function showStop() {
  const [target, title, text, set] = stops[stop], panel = document.querySelector(target);
  if (set) setUp(set);
  for (const other of all(".toured")) other.classList.remove("toured");
  panel.classList.add("toured");
  panel.scrollIntoView({block: set ? "start" : "center"});
  byId("guide-title").textContent = title;
  byId("guide-text").textContent = text;
  byId("guide-count").textContent = `${stop + 1} of ${stops.length}`;
  byId("guide-next").textContent = stop + 1 < stops.length ? "next" : "done";
}
// Show the models of a task, with a text that is long enough.
function setUp({model = state.model, other = ""}) {
  Object.assign(state, {other: String(other), text: [...state.text].length < 20 ? START.text : state.text});
  hold(false);
  changeModel(model);
}
function startGuide(list, first) {
  stops = list;
  stop = first;
  byId("guide").show();
  showStop();
  byId("guide-next").focus({preventScroll: true});
}
function endGuide() {
  byId("guide").close();
  for (const panel of all(".toured")) panel.classList.remove("toured");
}
byId("tour").onclick = () => startGuide(TOUR, 0);
byId("first-task").onclick = () => startGuide(TASKS, 0);
byId("tasks").replaceChildren(...TASKS.map(([, title], index) => element("li", {}, element("button", {type: "button", onclick: () => startGuide(TASKS, index)}, title))));
byId("guide-next").onclick = () => { stop += 1; if (stop < stops.length) showStop(); else endGuide(); };
byId("guide-end").onclick = endGuide;
byId("guide").onkeydown = ({key}) => { if (key === "Escape") endGuide(); };

recall();
showControls();
readText().catch(report);
addEventListener("hashchange", () => { Object.assign(state, DEFAULTS); recall(); showControls(); readText().catch(report); });
