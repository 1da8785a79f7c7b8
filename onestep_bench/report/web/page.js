// The page: its data, the filters that figures, tables and samples share, and what is drawn again when one changes.

const data = JSON.parse(document.getElementById("data").textContent);

document.getElementById("theme").addEventListener("click", () => {
  const dark = document.documentElement.dataset.theme ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
  document.documentElement.dataset.theme = dark === "dark" ? "light" : "dark";
});

// A table behind a summary is made when it is first opened.
function unfold(section, tables) {
  section.querySelectorAll("details > .table").forEach((root, i) => {
    root.parentElement.addEventListener("toggle", () => {
      if (root.childElementCount) return;
      new Table(root, tables[i].columns, { choose: true }).show(records(tables[i]));
    });
  });
}

class Page {
  constructor(scores) {
    this.scores = scores;
    this.records = records(scores);
    this.labels = Object.keys(scores.looks);
    this.boxes = {};
    this.state = {
      place: 0,
      score: scores.scores[0].key,
      labels: new Set(this.labels),
      sizes: new Set([scores.first_size]),
      steps: new Set(scores.steps),
    };
    const better = Object.fromEntries(scores.scores.map((score) => [score.key, score.better]));
    this.table = new Table(document.getElementById("table"), scores.columns, { choose: true, better });
    const describe = (id) => details(this.records[id], scores.columns);
    const root = document.getElementById("figures");
    this.figures = data.figures.map((figure) => [figure, new Figure(root, describe, (id) => this.reveal(id))]);
    this.pairs = data.parts.flatMap((part, i) => (part.pair ? [this.pair(part, i)] : []));
    const sheet = document.getElementById("sheet");
    this.sheet = sheet && new Sheet(sheet, document.getElementById("large"));
    document.getElementById("filters").append(...this.filters());
    this.draw();
  }

  // A figure of one column of a part's table against another.
  pair(part, i) {
    const table = part.tables.find((one) => one.columns.some((column) => column.key === part.pair[0]));
    const rows = records(table);
    const root = document.querySelector(`#part-${i} .pair`);
    return { part, table, rows, figure: new Figure(root, (id) => details(rows[id], table.columns)) };
  }

  get place() {
    return this.scores.places[this.state.place];
  }

  passes(record) {
    return this.state.sizes.has(record.size) && this.asked(record);
  }

  asked(record) {
    return this.state.labels.has(record.label) && this.state.steps.has(record.steps);
  }

  // Open the row of a point, which may be of a size that only the figure over all sizes shows.
  reveal(id) {
    const { size } = this.records[id];
    if (!this.state.sizes.has(size)) {
      this.boxes.sizes.get(size).checked = true;
      this.state.sizes.add(size);
      this.draw();
    }
    this.table.reveal(id);
  }

  draw() {
    const { scores, state } = this;
    const here = this.records.filter((record) => record.place === state.place && this.asked(record));
    const chosen = here.filter((record) => this.passes(record));
    const score = scores.scores.find((one) => one.key === state.score);
    const name = score.key === "fid" ? this.place.name : score.title;
    const real = this.place.floor > 0 ? `; real against real: ${brief(this.place.floor)}` : "";
    document.getElementById("protocol").textContent = `Protocol: ${this.place.protocol}${real}`;
    for (const [figure, frame] of this.figures) {
      const { points, steps, log } = drawn(figure, score, figure.sizes === "all" ? here : chosen, scores.looks);
      const near = score.key === "fid" && this.place.floor > Math.min(...points.map((point) => point.y)) / FAR_BELOW;
      const floor = near ? [{ y: this.place.floor }] : [];
      const at = steps ? `, at ${steps} step${steps > 1 ? "s" : ""}` : "";
      frame.draw(`${name} (${score.better} is better) ${figure.title}${at}`, log ? figure.log : figure.linear, points, { floor });
    }
    for (const pair of this.pairs) this.drawPair(pair);
    this.table.show(chosen);
    this.sheet?.show(data.strips.filter((strip) => strip.dataset === this.place.dataset && this.passes(strip)));
  }

  drawPair({ part, table, rows, figure }) {
    // Another data set has judges and splits of its own.
    const place = part.dataset === this.place.dataset ? this.place : this.scores.places.find((one) => one.dataset === part.dataset);
    const here = (row, key) => row[key] === undefined || row[key] === place[key];
    const [x, y] = part.pair;
    const own = rows.filter((row) => here(row, "features") && here(row, "split") && this.passes(row) && onLog(row[x]) && onLog(row[y]));
    const look = (row) => this.scores.looks[row.label] ?? ["#888", "circle"];
    const about = (row) => `${row.label}, ${row.size}, ${row.steps} steps: ${brief(row[y])} against ${brief(row[x])}`;
    const points = own.map((row) => ({ id: row.id, x: row[x], y: row[y], about: about(row), colour: look(row)[0], shape: look(row)[1] }));
    const ends = points.flatMap((point) => [point.x, point.y]);
    const judges = x === "x";
    const equal = [Math.min(...ends), Math.max(...ends)].map((end) => ({ x: end, y: end }));
    const title = (key) => table.columns.find((column) => column.key === key).title;
    const words = judges ? `Distance before ${rows[0].second} over that before ${rows[0].first}` : `Distance ${title(y)} over that ${title(x)}`;
    figure.draw(words, part.figure, points, { equal });
  }

  filters() {
    const places = this.scores.places;
    const pick = (key, name) => this.select(name, [...new Set(places.map((place) => place[key]))], this.place[key], (value) => this.move(key, value));
    this.selects = element("div", { class: "selects" });
    const choices = [pick("dataset", "data set"), pick("features", "judge"), pick("split", "split")];
    const titles = new Map(this.scores.scores.map((score) => [score.title, score.key]));
    choices.push(this.select("score", [...titles.keys()], null, (title) => this.change({ score: titles.get(title) })));
    this.selects.append(...choices.filter(Boolean));
    if (new Set(places.map((place) => [place.dataset, place.features, place.split].join())).size < places.length) {
      const protocols = places.map((place) => place.protocol);
      this.selects.append(this.select("protocol", protocols, this.place.protocol, (value) => this.change({ place: protocols.indexOf(value) })));
    }
    return [this.selects, this.chips("sizes", "size", this.scores.sizes), this.chips("steps", "steps", this.scores.steps), this.chips("labels", "method", this.labels)];
  }

  // The place that has this value, and of the other choices as many as there are.
  move(key, value) {
    const same = (place) => ["dataset", "features", "split"].filter((one) => place[one] === this.place[one]).length;
    const found = this.scores.places.filter((place) => place[key] === value).sort((one, other) => same(other) - same(one));
    this.change({ place: this.scores.places.indexOf(found[0]) });
  }

  select(name, values, value, change) {
    if (values.length < 2) return "";
    const key = { "data set": "dataset", judge: "features", split: "split", protocol: "protocol" }[name];
    const select = element("select", { "data-key": key ?? false }, ...values.map((one) => element("option", {}, one)));
    if (value !== null) select.value = value;
    select.addEventListener("change", () => change(select.value));
    return element("label", {}, `${name} `, select);
  }

  change(change) {
    Object.assign(this.state, change);
    for (const select of this.selects.querySelectorAll("select[data-key]")) select.value = this.place[select.dataset.key];
    this.draw();
  }

  // Check boxes of a set of the state, the methods' with their look: they are the figures' legend.
  chips(key, name, values) {
    if (values.length < 2) {
      this.state[key] = new Set(values);
      return "";
    }
    const boxes = values.map((value) => {
      const box = element("input", { type: "checkbox" });
      box.checked = this.state[key].has(value);
      box.addEventListener("change", () => {
        if (box.checked) this.state[key].add(value);
        else this.state[key].delete(value);
        this.draw();
      });
      return [box, element("label", { class: "chip" }, box, ...(key === "labels" ? [this.swatch(value)] : []), String(value))];
    });
    this.boxes[key] = new Map(boxes.map(([box], i) => [values[i], box]));
    const all = (checked) => () => {
      boxes.forEach(([box]) => { box.checked = checked; });
      this.change({ [key]: new Set(checked ? values : []) });
    };
    const button = (text, checked) => element("button", { type: "button", onclick: all(checked) }, text);
    return element("div", { class: "chips", role: "group", "aria-label": name }, element("span", { class: "muted" }, name), ...boxes.map(([, chip]) => chip), button("all", true), button("none", false));
  }

  swatch(label) {
    const [colour, shape] = this.scores.looks[label];
    const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
    svg.setAttribute("viewBox", "-7 -7 14 14");
    path.setAttribute("d", OUTLINES[shape]);
    path.setAttribute("fill", colour);
    svg.append(path);
    return svg;
  }
}

const OUTLINES = {
  circle: "M0-5A5 5 0 1 1 0 5A5 5 0 1 1 0-5Z",
  square: "M-5-5H5V5H-5Z",
  diamond: "M0-6L6 0L0 6L-6 0Z",
  "triangle-up": "M0-6L6 5H-6Z",
  "triangle-down": "M0 6L6-5H-6Z",
  "triangle-left": "M-6 0L5-6V6Z",
  "triangle-right": "M6 0L-5-6V6Z",
  cross: "M-2-6H2V-2H6V2H2V6H-2V2H-6V-2H-2Z",
};

const page = data.scores && new Page(data.scores);
data.parts.forEach((part, i) => unfold(document.getElementById(`part-${i}`), part.tables));
unfold(document.getElementById("origin"), data.origin);
