"use strict";
(() => {
  const PAGE = 48;
  const NONE = "\u2013";
  const element = (id) => document.getElementById(id);

  // figures as text, as in the tables
  const number = (value) => {
    const size = Math.abs(value);
    const text = size === 0 || (size >= 0.001 && size < 10000) ? value.toFixed(3) : value.toExponential(2);
    return text.replace(/-/g, "\u2212");
  };
  const signed = (value) => (value > 0 ? "+" : "") + number(value);

  // tables: a click on a heading sorts; what has no value comes last, whichever way
  const sortTable = (table, column, isNumber, sign) => {
    const value = (row) => row.cells[column].dataset.value;
    const compare = (one, other) => {
      const [a, b] = [value(one), value(other)];
      if (a === "" || b === "") return (a === "") - (b === "");
      return sign * (isNumber ? Number(a) - Number(b) : a.localeCompare(b));
    };
    const body = table.tBodies[0];
    body.append(...[...body.rows].sort(compare));
  };
  for (const table of document.querySelectorAll("table.sortable")) {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      head.querySelector("button").addEventListener("click", () => {
        const isNumber = head.classList.contains("figure");
        const first = isNumber ? "descending" : "ascending";
        const second = first === "descending" ? "ascending" : "descending";
        const direction = head.getAttribute("aria-sort") === first ? second : first;
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", direction);
        sortTable(table, column, isNumber, direction === "ascending" ? 1 : -1);
      });
    });
  }

  // the grid of pairs
  if (!element("controls")) return;
  const data = JSON.parse(element("data").textContent);
  const choices = Object.fromEntries(
    ["left", "right", "measure", "order", "winner", "category", "search"].map((id) => [id, element(id)]),
  );
  const models = data.models;
  let limit = PAGE;

  const make = (tag, text, className) => {
    const made = document.createElement(tag);
    if (text !== undefined) made.textContent = text;
    if (className) made.className = className;
    return made;
  };
  const fill = (select, options) => {
    const kept = select.value;
    select.replaceChildren(...options.map(([value, text]) => new Option(text, value)));
    if (options.some(([value]) => value === kept)) select.value = kept;
  };
  const score = (model, measure, prompt, seed) => {
    const found = data.prompts[prompt].scores[model][measure];
    return found === undefined ? null : found[seed];
  };
  const difference = (measure, pair) => {
    const left = score(choices.left.value, measure, pair.prompt, pair.seed);
    const right = score(choices.right.value, measure, pair.prompt, pair.seed);
    return left === null || right === null ? null : right - left;
  };
  const winner = (value) => (value === null ? "" : value > 0 ? "right" : value < 0 ? "left" : "tie");

  const figure = (side, pair, won) => {
    const made = make("figure", undefined, won ? "won" : "");
    const image = make("img");
    const model = choices[side].value;
    image.src = data.prompts[pair.prompt].pictures[model][pair.seed];
    image.alt = `${data.prompts[pair.prompt].text}, by ${model}`;
    image.decoding = "async";
    // only small pictures are kept as PNG
    if (!image.src.startsWith("data:image/webp")) image.className = "small";
    const caption = make("figcaption");
    caption.append(make("bdi", model));
    made.append(image, caption);
    made.dataset.side = side;
    return made;
  };

  const scoreRow = (measure, pair) => {
    const row = make("tr", undefined, measure === choices.measure.value ? "chosen" : "");
    row.dataset.measure = measure;
    row.append(make("th", measure));
    const values = ["left", "right"].map((side) => score(choices[side].value, measure, pair.prompt, pair.seed));
    for (const [column, value] of [...values.map((value, side) => [side ? "right" : "left", value]), ["difference", difference(measure, pair)]]) {
      const cell = make("td", value === null ? NONE : column === "difference" ? signed(value) : number(value), "figure");
      cell.dataset.column = column;
      cell.dataset.value = value === null ? "" : String(value);
      row.append(cell);
    }
    return row;
  };

  const card = (pair) => {
    const prompt = data.prompts[pair.prompt];
    const value = difference(choices.measure.value, pair);
    const won = winner(value);
    const made = make("article", undefined, "card");
    Object.assign(made.dataset, { prompt: prompt.number, seed: data.seeds[pair.seed], winner: won, difference: value === null ? "" : value });
    const title = make("h3", prompt.text);
    title.dir = "auto";
    const about = make("p", undefined, "about");
    if (prompt.category) about.append(make("bdi", prompt.category), ", ");
    about.append(`seed ${data.seeds[pair.seed]}`);
    const pictures = make("div", undefined, "pair");
    pictures.append(figure("left", pair, won === "left"), figure("right", pair, won === "right"));
    const table = make("table");
    table.append(make("tbody"));
    table.tBodies[0].append(...data.measures.map((measure) => scoreRow(measure, pair)));
    made.append(title, about, pictures, table);
    return made;
  };

  const chosenPairs = () => {
    const measure = choices.measure.value;
    const sought = choices.search.value.trim().toLowerCase();
    const pairs = [];
    data.prompts.forEach((prompt, index) => {
      if (choices.category.value !== "all" && prompt.category !== choices.category.value.slice(1)) return;
      if (!prompt.text.toLowerCase().includes(sought)) return;
      data.seeds.forEach((_, seed) => {
        const pair = { prompt: index, seed };
        pair.difference = difference(measure, pair);
        if (choices.winner.value === "all" || winner(pair.difference) === choices.winner.value) pairs.push(pair);
      });
    });
    const sign = { most: -1, least: 1 }[choices.order.value];
    if (sign === undefined) return pairs;
    return pairs.sort((one, other) => {
      if (one.difference === null || other.difference === null) return (one.difference === null) - (other.difference === null);
      return sign * (one.difference - other.difference);
    });
  };

  const show = () => {
    const pairs = chosenPairs();
    const seen = pairs.slice(0, limit);
    element("cards").replaceChildren(...seen.map(card));
    const all = data.prompts.length * data.seeds.length;
    element("count").textContent = `${seen.length} of ${pairs.length} pairs that match; ${all} pairs in this page`;
    const rest = pairs.length - seen.length;
    element("more").hidden = rest === 0;
    element("more").textContent = `Show ${Math.min(PAGE, rest)} more`;
  };

  const changed = () => {
    fill(choices.winner, [
      ["all", "anybody"],
      ["left", choices.left.value],
      ["right", choices.right.value],
      ["tie", "nobody: a tie"],
    ]);
    limit = PAGE;
    show();
  };

  fill(choices.left, models.map((model) => [model, model]));
  fill(choices.right, models.map((model) => [model, model]));
  choices.right.value = models[models.length - 1];
  fill(choices.measure, data.measures.map((measure) => [measure, measure]));
  const categories = [...new Set(data.prompts.map((prompt) => prompt.category))].sort();
  fill(choices.category, [["all", "all"], ...categories.map((category) => [`=${category}`, category || "(none)"])]);
  element("by-category").hidden = categories.length < 2;
  element("controls").hidden = false;
  element("controls").addEventListener("submit", (event) => event.preventDefault());
  for (const choice of Object.values(choices)) {
    choice.addEventListener(choice === choices.search ? "input" : "change", changed);
  }
  element("more").addEventListener("click", () => {
    limit += PAGE;
    show();
  });
  changed();
})();
