// Samples: a row for each model and number of steps, a column for each noise. One that is clicked is shown large.

function url(png) {
  return `url("data:image/png;base64,${png}")`;
}

// An image of a strip as a background: `count` images stand side by side in one PNG.
function image(name, png, count, i, attributes = {}) {
  const made = element(name, { class: "image", ...attributes });
  made.style.backgroundImage = png ? url(png) : "var(--strip)";
  made.style.backgroundSize = `${100 * count}% 100%`;
  made.style.backgroundPosition = `${count > 1 ? (100 * i) / (count - 1) : 0}% 0`;
  return made;
}

// Of each label and size the strip that tells most: of a teacher that with the most steps, of a student that with the
// fewest, of several budgets the last.
function telling(strips) {
  const best = new Map();
  for (const strip of strips) {
    const worth = strip.label.startsWith("teacher") ? strip.steps : -strip.steps;
    const key = JSON.stringify([strip.label, strip.size]);
    const known = best.get(key);
    if (!known || worth >= known.worth) best.set(key, { strip, worth });
  }
  return [...best.values()].map((one) => one.strip);
}

class Sheet {
  constructor(root, dialog) {
    Object.assign(this, { root, dialog });
    dialog.addEventListener("keydown", (event) => {
      if (event.key === "ArrowLeft") this.large(this.row, this.i - 1);
      if (event.key === "ArrowRight") this.large(this.row, this.i + 1);
    });
    dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
  }

  // strips: those that the page's filters leave, of which the reader chooses.
  show(strips) {
    this.left = strips;
    this.chosen = new Set(telling(strips));
    const open = Boolean(this.root.querySelector("details")?.open);
    const empty = element("p", { class: "muted" }, "No samples of these methods, sizes and steps.");
    [this.summary, this.rows] = [element("summary"), element("div")];
    this.root.replaceChildren(...(strips.length ? [this.chooser(open), this.rows] : [empty]));
    this.draw();
  }

  draw() {
    this.strips = this.left.filter((strip) => this.chosen.has(strip));
    this.summary.textContent = `rows: ${this.strips.length} of ${this.left.length} chosen`;
    this.rows.replaceChildren(...this.strips.map((strip, row) => this.line(strip, row)));
  }

  chooser(open) {
    const boxes = this.left.map((strip) => {
      const box = element("input", { type: "checkbox" });
      box.checked = this.chosen.has(strip);
      box.addEventListener("change", () => {
        if (box.checked) this.chosen.add(strip);
        else this.chosen.delete(strip);
        this.draw();
      });
      return element("label", {}, box, strip.name);
    });
    return element("details", { class: "rows", open }, this.summary, element("div", {}, ...boxes));
  }

  line(strip, row) {
    const images = Array.from({ length: strip.count }, (_, i) => {
      const about = `${strip.name}, noise ${i}`;
      return image("button", null, strip.count, i, { type: "button", "aria-label": about, onclick: () => this.large(row, i) });
    });
    const line = element("div", { class: "images" }, ...images);
    line.style.setProperty("--strip", url(strip.png));
    line.style.gridTemplateColumns = `repeat(${strip.count}, minmax(0, 1fr))`;
    return element("div", { class: "strip" }, element("span", {}, strip.name), line);
  }

  large(row, i) {
    const strip = this.strips[row];
    [this.row, this.i] = [row, Math.max(0, Math.min(i, strip.count - 1))];
    i = this.i;
    const parts = [this.picture(strip.png, strip, `noise ${i} of sampling seed 0`)];
    if (strip.nearest) parts.push(this.picture(strip.nearest.png, strip, `the nearest training image, number ${strip.nearest.index[i]} (by pixels)`));
    const step = (by, text) => element("button", { type: "button", onclick: () => this.large(row, i + by) }, text);
    const close = element("button", { type: "button", onclick: () => this.dialog.close() }, "close");
    const same = this.strips.map((other, at) => this.same(other, at, i)).filter(Boolean);
    // The button that was pressed is another one now: without focus in the dialog its arrow keys would be dead.
    const pressed = [...this.dialog.querySelectorAll("button")].indexOf(document.activeElement);
    this.dialog.replaceChildren(
      element("p", {}, element("strong", {}, strip.name), ` · ${strip.sampler}, training seed ${strip.train_seed ?? "–"}`),
      element("div", { class: "pictures" }, ...parts),
      element("p", { class: "tools" }, step(-1, "← noise"), step(1, "noise →"), close),
      element("p", { class: "muted" }, "The same noise through the models above:"),
      element("div", { class: "same" }, ...same),
    );
    if (!this.dialog.open) this.dialog.showModal();
    else this.dialog.querySelectorAll("button")[Math.max(0, pressed)].focus();
  }

  picture(png, strip, caption) {
    const side = strip.side * Math.max(1, Math.floor(256 / strip.side)); // whole pixels
    const made = image("div", png, strip.count, this.i, { role: "img", "aria-label": caption });
    made.style.width = `${side}px`;
    return element("figure", {}, made, element("figcaption", {}, caption));
  }

  same(strip, at, i) {
    if (i >= strip.count) return null;
    const made = image("button", strip.png, strip.count, i, { type: "button", "aria-label": strip.name, onclick: () => this.large(at, i) });
    return element("figure", {}, made, element("figcaption", {}, strip.name));
  }
}
