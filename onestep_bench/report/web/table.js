// Tables of {columns, rows}: sorted by a click on a head, searched by words, with as many columns as there is room for.
// A click on a row tells the rest. All text goes in as text: names come from notebooks.

function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (value !== false && value !== null) made.setAttribute(key, value === true ? "" : value);
  }
  made.append(...children);
  return made;
}

// Rows as objects, by the keys of their columns.
function records(table) {
  const keys = table.columns.map((column) => column.key);
  return table.rows.map((values, id) => Object.fromEntries([["id", id], ...keys.map((key, i) => [key, values[i]])]));
}

// Three significant digits, but never fewer than the whole number; `padded` keeps zeros, so that columns line up.
function brief(value, padded) {
  if (Math.abs(value) >= 100) return value.toFixed(0);
  return padded && value !== 0 ? value.toPrecision(3) : String(Number(value.toPrecision(3)));
}

function large(value) {
  const [size, name] = [[1e15, "P"], [1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]]
    .find(([size]) => Math.abs(value) >= size) ?? [1, ""];
  return String(Number((value / size).toPrecision(3))) + name;
}

function shown(record, column) {
  const value = record[column.key];
  if (value === null || value === undefined || value === "") return "–";
  if (column.kind === "interval") return value.map((bound) => brief(bound, true)).join(" to ");
  if (column.kind === "big") return large(value);
  if (column.kind === "measured") return brief(value, true) + (column.key === "seconds" && record.busy ? "*" : "");
  return typeof value === "number" ? brief(value, false) : String(value);
}

// All that is known of a record, as a list of terms.
function details(record, columns) {
  const list = element("dl");
  for (const column of columns) {
    const text = shown(record, column);
    if (column.rank < 0 || text === "–") continue;
    list.append(element("div", { title: column.about }, element("dt", {}, column.title), element("dd", {}, text)));
  }
  if (record.busy) list.append(element("div", {}, element("dt", {}, "*"), element("dd", {}, "measured beside other work: too long")));
  return list;
}

// Sort keys: what is not known comes last, and sizes ("0.05M") go by their number.
function compared(one, other, sign) {
  [one, other] = [one, other].map((value) => (Array.isArray(value) ? value[0] : value) ?? "");
  if (one === "" || other === "") return (one === "") - (other === "");
  const numbers = [parseFloat(one), parseFloat(other)];
  const known = numbers.every(Number.isFinite) && numbers[0] !== numbers[1];
  return sign * (known ? numbers[0] - numbers[1] : String(one).localeCompare(String(other)));
}

class Table {
  // options: limit (rows shown at first), better (by key, which side of a column is set in bold), choose (a chooser of
  // columns and a search).
  constructor(root, columns, options = {}) {
    this.columns = columns.filter((column) => column.rank >= 0);
    this.options = { limit: 40, better: {}, choose: false, ...options };
    this.chosen = new Map();
    this.words = "";
    this.open = new Set();
    this.body = element("tbody");
    this.heads = element("tr");
    this.frame = element("div", { class: "wide" }, element("table", {}, element("thead", {}, this.heads), this.body));
    this.more = element("button", { type: "button", class: "more", onclick: () => this.showAll() });
    root.replaceChildren(...(this.options.choose ? [this.tools()] : []), this.frame, this.more);
    this.records = [];
    new ResizeObserver(() => this.fit()).observe(root);
  }

  tools() {
    const search = this.search = element("input", { type: "search", placeholder: "search rows", "aria-label": "search rows" });
    search.addEventListener("input", () => this.update({ words: search.value.toLowerCase() }));
    const boxes = this.columns.filter((column) => column.rank > 0).map((column) => {
      const box = element("input", { type: "checkbox" });
      box.checked = column.rank < 9;
      box.addEventListener("change", () => { this.chosen.set(column.key, box.checked); this.draw(); });
      return element("label", { title: column.about }, box, column.title);
    });
    const chooser = element("details", { class: "chooser" }, element("summary", {}, "columns"), element("div", {}, ...boxes));
    return element("div", { class: "tools" }, search, chooser);
  }

  show(records) {
    this.update({ records, all: false });
  }

  update(change) {
    Object.assign(this, change);
    this.draw();
  }

  showAll() {
    this.update({ all: true });
  }

  // Open the row of a record, wherever it stands.
  reveal(id) {
    this.open.add(id);
    if (!this.sorted().some((record) => record.id === id)) this.words = this.search.value = "";
    this.update({ all: true });
    this.body.querySelector(`[data-id="${id}"]`)?.scrollIntoView({ behavior: "smooth", block: "center" });
  }

  sorted() {
    const found = this.records.filter((record) => !this.words || this.text(record).includes(this.words));
    if (!this.key) return found;
    return [...found].sort((one, other) => compared(one[this.key], other[this.key], this.sign));
  }

  text(record) {
    return this.columns.map((column) => shown(record, column)).join(" ").toLowerCase();
  }

  sortBy(key) {
    this.update({ key, sign: this.key === key ? -this.sign : 1 });
  }

  best(records) {
    const found = {};
    for (const [key, side] of Object.entries(this.options.better)) {
      const values = records.map((record) => record[key]).filter((value) => value !== null && value !== undefined);
      if (new Set(values).size > 1) found[key] = (side === "lower" ? Math.min : Math.max)(...values);
    }
    return found;
  }

  draw() {
    const records = this.sorted();
    const visible = this.all ? records : records.slice(0, this.options.limit);
    const best = this.best(records);
    const focus = document.activeElement.closest("th")?.dataset.key;
    this.visible = this.columns.filter((column) => this.chosen.get(column.key) ?? column.rank < 9);
    this.heads.replaceChildren(...this.visible.map((column) => this.head(column)));
    this.body.replaceChildren(...visible.flatMap((record) => this.lines(record, best)));
    this.more.hidden = visible.length === records.length;
    this.more.textContent = `show all ${records.length} rows`;
    this.fit();
    // A head that was sorted by is another one now.
    [...this.heads.cells].find((head) => head.dataset.key === focus)?.firstChild.focus();
  }

  head(column) {
    const sorted = this.key === column.key ? (this.sign > 0 ? "ascending" : "descending") : "none";
    const button = element("button", { type: "button", title: column.about, onclick: () => this.sortBy(column.key) }, column.title);
    return element("th", { scope: "col", class: column.kind, "aria-sort": sorted, "data-key": column.key }, button);
  }

  lines(record, best) {
    const open = this.open.has(record.id);
    const cells = this.visible.map((column) => {
      const top = best[column.key] !== undefined && record[column.key] === best[column.key];
      const text = shown(record, column);
      return element("td", { class: column.kind + (text.length > 20 ? " long" : "") + (top ? " best" : "") }, text);
    });
    const keys = (event) => {
      if (event.key !== "Enter" && event.key !== " ") return;
      event.preventDefault(); // a space would scroll
      this.toggle(record, line);
    };
    const line = element("tr", { "data-id": record.id, tabindex: 0, "aria-expanded": String(open), onclick: () => this.toggle(record, line), onkeydown: keys }, ...cells);
    return open ? [line, this.rest(record)] : [line];
  }

  rest(record) {
    return element("tr", { class: "rest" }, element("td", { colspan: this.visible.length }, details(record, this.columns)));
  }

  toggle(record, line) {
    const open = !this.open.delete(record.id);
    if (open) this.open.add(record.id);
    if (open) line.after(this.rest(record));
    else line.nextElementSibling.remove();
    line.setAttribute("aria-expanded", String(open));
  }

  // Leave out columns, those of the highest rank first, until the rest fit; those asked for stay, and may be scrolled.
  fit() {
    const lines = [this.heads, ...this.body.querySelectorAll("tr:not(.rest)")];
    const hide = (i, hidden) => lines.forEach((line) => { line.cells[i].hidden = hidden; });
    if (!this.visible || !this.frame.clientWidth) return;
    this.visible.forEach((_, i) => hide(i, false));
    const candidates = this.visible
      .map((column, i) => ({ rank: column.rank, i, asked: this.chosen.get(column.key) }))
      .filter((one) => one.rank > 0 && !one.asked)
      .sort((one, other) => other.rank - one.rank || other.i - one.i);
    for (const { i } of candidates) {
      if (this.frame.scrollWidth <= this.frame.clientWidth) break;
      hide(i, true);
    }
  }
}
