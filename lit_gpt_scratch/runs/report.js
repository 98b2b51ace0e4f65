// Draws the panels from DATA, and redraws them whenever a control changes.
const {groups, panels, references, symbols, axes, colors} = DATA;
const all = selector => [...document.querySelectorAll(selector)];
const control = id => document.getElementById(id);
const dashes = ["solid", "dash", "dot"];
const shown = groups.map(() => true);
let zoom = null; // range of the x-axis that all panels of curves share; null: everything

const color = index => colors[index % colors.length];
const dash = index => dashes[Math.floor(index / colors.length) % dashes.length];
// Plotly interprets some HTML in names: escape it.
const plain = text => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;");
const against = columns => columns[control("axis").value] ?? Object.values(columns)[0].map(() => null);
const number = value => value.toPrecision(5);

// Replace each value by the mean of it and its neighbours, at most `radius` on either side.
function smooth(values, radius) {
  return radius === 0 ? values : values.map((value, i) => {
    if (value === null) return null;
    const reach = Math.min(radius, i, values.length - 1 - i); // symmetric: the ends do not shift
    const near = values.slice(i - reach, i + reach + 1).filter(near => near !== null);
    return near.reduce((sum, near) => sum + near) / near.length;
  });
}

// Return a curve in the colour of a group.
function line(index, name, x, y, width, more) {
  const few = y.length <= 30;
  return {
    type: "scatter", mode: few ? "lines+markers" : "lines", connectgaps: true, visible: shown[index], meta: {index},
    name: plain(name), x, y, line: {color: color(index), dash: dash(index), width}, marker: {size: 2 + 1.5 * width},
    hovertemplate: "%{y:.5~g}%{customdata} at %{x:,.6~r}<extra>%{fullData.name}</extra>", customdata: y.map(() => ""), ...more,
  };
}

function lines(panel) {
  return groups.flatMap((group, index) => {
    const part = ["train", "val"].find(part => panel.key in group[part].mean);
    if (!part) return [];
    const radius = part === "train" && panel.key !== "lr" ? Number(control("smooth").value) : 0;
    const values = columns => smooth(columns[panel.key], radius);
    const {mean, low, high} = group[part], x = against(mean);
    if (!low) return [line(index, group.label, x, values(mean), 2)];
    const least = values(low), greatest = values(high);
    const known = x.flatMap((at, i) => at === null || least[i] === null ? [] : [i]), back = known.toReversed();
    const band = {
      type: "scatter", visible: shown[index], meta: {index},
      x: [...known, ...back].map(i => x[i]), y: [...known.map(i => greatest[i]), ...back.map(i => least[i])],
      mode: "lines", line: {width: 0}, fill: "toself", fillcolor: color(index) + "38", hoverinfo: "skip",
    };
    const singles = control("singles")?.checked ? group.runs.filter(run => panel.key in run[part]) : [];
    const ranges = least.map((value, i) => value === null ? "" : ` (${number(value)} to ${number(greatest[i])})`);
    return [
      band,
      ...singles.map(run => line(index, run.label, against(run[part]), values(run[part]), 1, {opacity: .5})),
      line(index, group.label, x, values(mean), 2, {customdata: ranges}),
    ];
  });
}

// One curve for each layer: the mean of the group's runs. Later layers are darker.
function layers(panel) {
  return groups.flatMap((group, index) => {
    const {mean} = group.val, keys = Object.keys(mean).filter(key => key.startsWith(`${panel.key}/`));
    return keys.map((key, i) => {
      const name = `${group.label}, ${key.slice(panel.key.length + 1)}`;
      return line(index, name, against(mean), mean[key], 1.5, {opacity: .25 + .75 * (i + 1) / keys.length});
    });
  });
}

// One config: bars. Several: points, because bars would overlap.
function bars() {
  const measured = group => group.symbols.some(Boolean), several = groups.filter(measured).length > 1;
  return groups.flatMap((group, index) => measured(group) ? [{
    meta: {index}, visible: shown[index], name: plain(group.label), x: symbols.map(plain),
    y: group.symbols.map(s => s?.[1]), customdata: group.symbols.map(s => s?.[0]),
    type: several ? "scatter" : "bar", mode: "markers", marker: {color: color(index), size: 8, opacity: .8},
    hovertemplate: "%{y:.3f}, %{customdata:,} occurrences<extra>%{fullData.name}</extra>",
  }] : []);
}

// Return the range of the values that are drawn, with a margin; null if nothing is.
function extent(traces, isLog) {
  const from = zoom ? zoom.map(end => control("log").checked ? 10 ** end : end) : [-Infinity, Infinity];
  let low = Infinity, high = -Infinity;
  for (const {x, y, visible} of traces) if (visible) y.forEach((value, i) => {
    if (value === null || isLog && value <= 0 || zoom && !(from[0] <= x[i] && x[i] <= from[1])) return;
    low = Math.min(low, value); high = Math.max(high, value);
  });
  if (low > high) return null;
  if (isLog) [low, high] = [Math.log10(low), Math.log10(high)];
  const margin = .05 * (high - low || Math.abs(high) || 1);
  return [low - margin, high + margin];
}

function layout(panel, traces) {
  const style = selector => getComputedStyle(document.querySelector(selector));
  const quiet = style("th").color, ink = style("body").color, paper = style(".card").backgroundColor;
  const grid = "rgba(128, 128, 128, .2)", isBar = panel.kind === "bar", range = isBar ? null : extent(traces, panel.log);
  // A line outside of the curves' range would stretch the axis.
  const marks = panel.key === "val/loss" && range && control("marks")?.checked
    ? Object.entries(references).filter(([, loss]) => range[0] < loss && loss < range[1]) : [];
  return {
    font: {family: "system-ui, sans-serif", size: 12, color: quiet}, margin: {l: 58, r: 12, t: 8, b: 44},
    paper_bgcolor: "transparent", plot_bgcolor: "transparent", modebar: {bgcolor: "transparent", color: quiet, activecolor: ink},
    hovermode: panel.kind === "layers" ? "closest" : "x unified", hoverdistance: -1, showlegend: false,
    hoverlabel: {namelength: -1, bgcolor: paper, font: {color: ink}},
    xaxis: isBar
      ? {type: "category", tickangle: 0, gridcolor: grid, title: {text: "characters, most frequent first"}}
      : {title: {text: axes[control("axis").value]}, gridcolor: grid, zeroline: false, hoverformat: ",.6~r",
        minorloglabels: "none", spikecolor: quiet, spikethickness: 1,
        type: control("log").checked ? "log" : "linear", ...(zoom ? {range: [...zoom]} : {autorange: true})},
    yaxis: {
      title: {text: panel.unit}, gridcolor: grid, zeroline: false,
      type: panel.log ? "log" : "linear", ...(panel.log && {minorloglabels: "complete"}),
      ...(isBar && {rangemode: "tozero"}), ...(zoom && range ? {range} : {autorange: true}),
    },
    shapes: marks.map(([, loss]) => ({
      type: "line", xref: "paper", x0: 0, x1: 1, y0: loss, y1: loss, layer: "below",
      line: {color: quiet, width: 1, dash: "dash"},
    })),
    // On a narrow screen the names would hide the curves; the scoreboard has them.
    annotations: innerWidth < 600 ? [] : marks.map(([name, loss]) => ({
      text: `${name}: ${loss}`, xref: "paper", x: 0, xanchor: "left", y: loss, yanchor: "bottom",
      showarrow: false, font: {size: 10}, borderpad: 0,
    })),
  };
}

const plots = all(".plot");
const tracesOf = {line: lines, layers, bar: bars};
const curves = plots.filter(plot => panels[plot.dataset.key].kind !== "bar");
// Leave out Plotly's default button that uploads the data.
const options = {responsive: true, displaylogo: false, modeBarButtons: [["toImage", "zoom2d", "pan2d", "resetScale2d"]]};
let isDrawing = false, pending = 0;

function draw(some) {
  isDrawing = true;
  for (const plot of some) {
    const panel = panels[plot.dataset.key], traces = tracesOf[panel.kind](panel);
    Plotly.react(plot, traces, layout(panel, traces), options);
  }
  isDrawing = false;
}
// A slider changes more often than the page can be drawn.
function drawSoon() {
  cancelAnimationFrame(pending);
  pending = requestAnimationFrame(() => draw(plots));
}
draw(plots);

for (const plot of curves) plot.on("plotly_relayout", event => {
  if (isDrawing) return;
  const range = event["xaxis.range"] ?? [event["xaxis.range[0]"], event["xaxis.range[1]"]];
  if (range[0] === undefined && !event["xaxis.autorange"]) return; // it is no zoom
  zoom = range[0] === undefined ? null : range;
  draw(curves.filter(other => other !== plot || !zoom));
});

function show(isShown) {
  isShown.forEach((value, index) => { shown[index] = value; });
  for (const box of all(".toggle")) box.checked = shown[box.value];
  for (const part of all("[data-group]")) part.hidden = !shown[part.dataset.group];
  draw(plots);
}
for (const box of all(".toggle")) box.onchange = () => show(shown.with(box.value, box.checked));
for (const button of all("button[value]")) button.onclick = () => show(shown.map(() => button.value === "all"));

control("smooth").oninput = drawSoon;
for (const id of ["axis", "log"]) control(id).onchange = () => { zoom = null; draw(curves); };
if (control("marks")) control("marks").onchange = () => draw(curves);
if (control("singles")) control("singles").onchange = () => {
  for (const row of all("tr.single")) row.hidden = !control("singles").checked;
  draw(curves);
};

const preference = matchMedia("(prefers-color-scheme: dark)");
preference.onchange = () => draw(plots);
control("theme").onclick = () => {
  const root = document.documentElement.style, isDark = (root.colorScheme || (preference.matches ? "dark" : "light")) === "dark";
  root.colorScheme = isDark ? "light" : "dark";
  draw(plots);
};

// A click on a heading sorts by its column, a second click in the other direction.
const headings = all("#scores th:has(button)");
headings.forEach((heading, column) => {
  heading.querySelector("button").onclick = () => {
    const sign = heading.ariaSort === "ascending" ? -1 : 1;
    const value = body => {
      const cell = body.rows[0].cells[column], text = cell.dataset.value ?? cell.innerText;
      return cell.dataset.value ? Number(text) : text;
    };
    const compare = (a, b) => typeof a === "number" ? a - b : a.localeCompare(b, undefined, {numeric: true});
    const bodies = all("#scores .group").map(body => [value(body), body]);
    const known = bodies.filter(([key]) => key !== "").sort(([a], [b]) => sign * compare(a, b));
    for (const other of headings) other.ariaSort = null;
    heading.ariaSort = sign === 1 ? "ascending" : "descending";
    control("scores").tHead.after(...[...known, ...bodies.filter(([key]) => key === "")].map(([, body]) => body));
  };
});

// Show a run's command, and copy it where the browser allows it.
for (const button of all(".try")) button.onclick = () => {
  const {command} = button.dataset, [code, note] = control("command").children;
  control("command").hidden = false;
  code.textContent = command;
  note.textContent = "";
  navigator.clipboard?.writeText(command).then(() => { note.textContent = "(copied)"; }, () => {});
};

// Samples and images of all configs show the same part of their training.
for (const slider of all(".moment")) slider.oninput = () => {
  for (const other of all(".moment")) other.value = slider.value;
  for (const card of all("[data-frames]")) {
    const frames = [...card.querySelectorAll(".frame")], at = Math.round(slider.value / slider.max * (frames.length - 1));
    frames.forEach((frame, i) => { frame.hidden = i !== at; });
  }
};
