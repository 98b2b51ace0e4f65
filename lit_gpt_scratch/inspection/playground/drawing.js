// What the panels draw with: elements, characters, pictures and numbers as text.

const all = selector => [...document.querySelectorAll(selector)];
const byId = id => document.getElementById(id);
const nats = value => `${value.toFixed(2)} nats`;
const percent = value => value >= .0995 ? `${(100 * value).toFixed(0)} %` : `${(100 * value).toFixed(1)} %`;
const visible = character => ({"\n": "⏎", " ": "␣", "\t": "⇥"}[character] ?? character);
const meanLoss = losses => {
  const known = [...losses].filter(Number.isFinite);
  return known.length ? known.reduce((sum, loss) => sum + loss) / known.length : NaN;
};

// A text in the page is always text: never HTML.
function element(tag, properties = {}, ...children) {
  const {style = {}, dataset = {}, ...others} = properties, made = Object.assign(document.createElement(tag), others);
  for (const [name, value] of Object.entries(style)) made.style.setProperty(name, value);
  Object.assign(made.dataset, dataset);
  made.append(...children);
  return made;
}

// Show some characters of a text, from the position `first`. `heat` is a number from 0 to 1, or
// null: unknown. Cells that stay as they are stay in place, and new ones come together, so that a long
// text does not cost time.
function showCharacters(target, characters, first, heat, title) {
  const cells = [...target.children].slice(0, characters.length), added = new DocumentFragment();
  characters.forEach((character, i) => {
    const cell = cells[i] ?? added.appendChild(document.createElement("span")), position = first + i;
    const known = heat(position), name = title(position), drawn = `${position} ${character} ${known} ${name}`;
    if (cell.drawn === drawn) return;
    Object.assign(cell, {drawn, title: name, className: known === null ? "unknown" : "", textContent: character === "\n" ? "⏎\n" : character});
    cell.dataset.position = position;
    if (known) cell.style.setProperty("--heat", `${100 * known}%`);
    else cell.style.removeProperty("--heat");
  });
  while (target.children.length > characters.length) target.lastChild.remove();
  target.append(added);
}

// Replace what an element holds. The focus stays on the control at the same place.
function redraw(target, ...children) {
  const controls = () => [...target.querySelectorAll("button, input")], at = controls().indexOf(document.activeElement);
  target.replaceChildren(...children);
  if (at >= 0) controls()[at]?.focus({preventScroll: true});
}

// Scroll the boxes of long texts to some of their characters, once the browser has laid them out anyway.
const cellsToShow = new Set();
function showInBox(cell) {
  if (!cellsToShow.size) requestAnimationFrame(() => {
    for (const cell of cellsToShow) {
      const box = cell.closest(".characters"), top = cell.offsetTop - (box?.scrollTop ?? 0);
      if (box && (top < 0 || top + cell.offsetHeight > box.clientHeight)) box.scrollTop = cell.offsetTop - box.clientHeight / 2;
    }
    cellsToShow.clear();
  });
  cellsToShow.add(cell);
}

// Replace the options of a menu, and choose one.
function fillMenu(menu, titles, chosen) {
  menu.replaceChildren(...titles.map((title, value) => element("option", {value}, title)));
  menu.value = chosen;
  menu.disabled = titles.length < 2;
}

// The colour of an element, as three numbers.
const colourOf = target => getComputedStyle(target).color.match(/\d+/g).map(Number);

// Paint a picture of one colour, one pixel for each value. `alpha` is a number from 0 to 1; below 0,
// it marks with another colour.
function paint(canvas, width, height, [red, green, blue], alpha) {
  Object.assign(canvas, {width, height});
  const context = canvas.getContext("2d"), image = context.createImageData(width, height), {data} = image;
  for (let y = 0, at = 0; y < height; y++) for (let x = 0; x < width; x++, at += 4) {
    const value = alpha(x, y), isMarked = value < 0;
    data[at] = isMarked ? blue : red;
    data[at + 1] = green;
    data[at + 2] = isMarked ? red : blue;
    data[at + 3] = 255 * Math.min(1, Math.abs(value));
  }
  context.putImageData(image, 0, 0);
}
