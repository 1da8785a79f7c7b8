// Figures by Vega-Lite: their specifications come from Python (charts.py), their rows from what the filters leave.

const tip = document.getElementById("tip");

function showTip(event, list) {
  tip.replaceChildren(list);
  tip.hidden = false;
  const { width, height } = tip.getBoundingClientRect();
  const right = event.clientX + 16 + width < innerWidth;
  tip.style.left = `${Math.max(6, right ? event.clientX + 16 : event.clientX - 16 - width)}px`;
  tip.style.top = `${Math.max(6, Math.min(event.clientY - height / 2, innerHeight - height - 6))}px`;
}

function hideTip() {
  tip.hidden = true;
}
addEventListener("scroll", hideTip, { passive: true });

// Axes and text in the page's own colours, which follow its theme, on paper too.
const [INK, MUTED, RULE] = ["var(--ink)", "var(--muted)", "var(--rule)"];
const LOOK = {
  background: null,
  font: getComputedStyle(document.body).fontFamily,
  view: { stroke: null },
  axis: { labelColor: MUTED, titleColor: INK, gridColor: RULE, domainColor: MUTED, tickColor: MUTED, titleFontWeight: 400, labelFontSize: 11, titleFontSize: 12 },
};

class Figure {
  // describe: of a row, all that is known of it, as an element. click: what a click on a row's point does.
  constructor(root, describe, click) {
    this.title = element("h3");
    this.frame = element("div", { class: "plot" });
    this.empty = element("p", { class: "muted" }, "Nothing to draw: choose other methods, sizes or steps, or another score.");
    root.append(element("figure", {}, this.title, this.frame, this.empty));
    Object.assign(this, { describe, click, turn: 0, before: Promise.resolve() });
  }

  // points: rows with x, y and the like, by `id` those of `records`. extra: further named data.
  draw(title, specification, points, extra = {}) {
    const turn = ++this.turn;
    this.title.textContent = title;
    this.empty.hidden = points.length > 0;
    this.frame.hidden = !points.length;
    if (!points.length) return;
    const datasets = { points, ...extra };
    const layer = specification.layer.filter((one) => !one.data || datasets[one.data.name].length); // no ends of nothing
    const wanted = { ...specification, layer, datasets };
    // One after the other, as each takes a while; those that a later one has overtaken by then are left out.
    const next = () => turn === this.turn && this.embed(wanted);
    this.before = this.before.then(next, next);
  }

  async embed(specification) {
    this.made?.finalize();
    const made = this.made = await vegaEmbed(this.frame, specification, { actions: false, renderer: "svg", config: LOOK, tooltip: false });
    made.view.addEventListener("mouseover", (event, item) => {
      if (item?.mark.marktype === "symbol") showTip(event, this.describe(item.datum.id));
    });
    made.view.addEventListener("mouseout", hideTip);
    made.view.addEventListener("click", (event, item) => {
      if (item?.mark.marktype !== "symbol") return;
      showTip(event, this.describe(item.datum.id));
      this.click?.(item.datum.id);
    });
  }
}

function onLog(value) {
  return typeof value === "number" && value > 0;
}

const FAR_BELOW = 3; // times: a floor farther below the lowest score would take the axis from the scores
const TOO_BAD = 3; // times the worst student: a teacher in one step would squeeze all others together

// What a figure of scores draws of the filtered records: its rows, and the number of steps if it is of one only.
function drawn(figure, score, records, looks) {
  const known = records.filter((record) => onLog(record[figure.x]) && typeof record[score.key] === "number");
  const counts = known.map((record) => record.steps);
  const steps = figure.steps === "one" && counts.length ? Math.min(...counts) : null;
  const log = score.key === "fid" || (score.better === "lower" && known.every((record) => record[score.key] > 0));
  const here = known
    .filter((record) => (steps === null || record.steps === steps) && (figure.rows === "all" || record.last))
    .filter((record) => !log || record[score.key] > 0);
  const worst = Math.max(...here.filter((record) => !record.teacher).map((record) => record[score.key]));
  const hidden = (record) => steps !== null && log && record.teacher && record[score.key] > TOO_BAD * worst && worst > 0;
  const points = here.filter((record) => !hidden(record))
    .map((record) => ({
      id: record.id,
      [figure.x]: record[figure.x],
      y: record[score.key],
      order: record[figure.order],
      about: `${record.label}, ${record.size}, ${record.steps} steps: ${score.title} ${brief(record[score.key])}`,
      series: figure.series.map((key) => record[key]).join("|"),
      colour: looks[record.label][0],
      shape: looks[record.label][1],
      ...bar(record, score),
    }));
  return { points, steps, log };
}

// An error bar: the interval over runs, of a single run a thin one of its seeds' spread; above zero, as axes are logarithmic.
function bar(record, score) {
  const spread = record.seed_std ?? 0;
  if (score.key !== "fid") return { low: record[score.key], high: record[score.key], width: 0 };
  const [low, high] = record.interval ?? [record.fid - spread, record.fid + spread];
  return { low: Math.max(low, 0.1 * record.fid), high, width: record.interval ? 1.3 : 0.6 };
}
