/** Line charts in SVG. */

import { classed, element, scrolling } from "../shared/dom.js";
import { t } from "../shared/i18n.js";
import { number } from "./list.js";

const HEIGHT = 220;
const MARGIN = { top: 28, right: 12, bottom: 42, left: 52 };
/** A smoothed line follows this part of a series' points: short ones hardly, long ones calmly. */
const SMOOTHED = 1 / 40;
/** More points than this are drawn without dots, and smoothed if the series wants that. */
const FEW = 24;
const ROWS = 50;

/** @typedef {[number, number][]} Points */
/** @typedef {{name: string, points: Points, smooth?: boolean}} Series */

function svg(tag, attributes, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

/**
 * About `count` round numbers that cover the range from `low` to `high`.
 * @param {number} low
 * @param {number} high
 * @param {number} count
 * @param {number} [least] the smallest distance between two: 1 where halves mean nothing
 * @returns {number[]}
 */
export function ticks(low, high, count, least = 0) {
  const rough = (high - low || Math.abs(high) || 1) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = Math.max(least, [1, 2, 5, 10].find((factor) => factor * power >= rough) * power);
  const first = Math.floor(low / step + 1e-9);
  const last = Math.max(Math.ceil(high / step - 1e-9), first + 1);
  // Multiplied, not added up: no sum of rounding errors in the labels.
  return Array.from({ length: last - first + 1 }, (_, at) => (first + at) * step);
}

/**
 * A moving average without the bias of its beginning.
 * @param {Points} points
 * @returns {Points}
 */
export function smoothed(points) {
  const keep = 1 - 1 / Math.max(1, points.length * SMOOTHED);
  let sum = 0;
  let weight = 0;
  return points.map(([x, y]) => {
    sum = keep * sum + (1 - keep) * y;
    weight = keep * weight + (1 - keep);
    return [x, sum / weight];
  });
}

/** The mean of every so many neighbours, so that no more than `most` points are left. */
function thinned(points, most) {
  const group = Math.ceil(points.length / most);
  if (group <= 1) return points;
  const mean = (part, at) => part.reduce((sum, point) => sum + point[at], 0) / part.length;
  return Array.from({ length: Math.ceil(points.length / group) }, (_, index) => {
    const part = points.slice(index * group, (index + 1) * group);
    return [mean(part, 0), mean(part, 1)];
  });
}

/** A chart in a figure: legend, picture, what the pointer is at, and the numbers as a table. */
export class LineChart {
  /**
   * @param {HTMLElement} figure
   * @param {{from?: number, to?: number, table?: boolean, xName: () => string,
   *   yName: () => string, unit?: string, whole?: boolean}} options `from`: what the vertical axis
   *   includes at least, and `to`; `whole`: the horizontal axis counts what has no halves
   */
  constructor(figure, options) {
    this.options = options;
    this.series = [];
    this.legend = classed("ul", "legend");
    this.plot = classed("div", "plot");
    this.readout = classed("p", "readout quiet");
    this.rows = scrolling(classed("div", "table"), t("data"));
    this.data = element("details", element("summary", t("data")), this.rows);
    this.data.hidden = !options.table;
    const caption = figure.querySelector("figcaption");
    figure.replaceChildren(caption, this.legend, this.plot, this.readout, this.data);
    new ResizeObserver(() => this.#draw()).observe(this.plot);
    this.data.addEventListener("toggle", () => this.#tabulate());
    this.plot.addEventListener("pointermove", (event) => this.#read(event));
    this.plot.addEventListener("pointerleave", () => this.#leave());
  }

  /**
   * Show `series`, once per frame however often they change.
   * @param {Series[]} series
   */
  show(series) {
    if (!this.pending) requestAnimationFrame(() => this.#draw());
    this.pending = true;
    this.series = series;
  }

  #draw() {
    this.pending = false;
    const width = this.plot.clientWidth;
    const filled = this.series.filter(({ points }) => points.length);
    this.#describe();
    if (!width) return;
    if (!filled.length) {
      this.plot.replaceChildren(classed("p", "quiet", t("noData")));
      return;
    }
    this.scale = this.#scale(filled, width);
    const lines = this.series.flatMap((series, index) => this.#line(series, index));
    this.cursor = svg("line", { class: "cursor", y1: MARGIN.top, y2: HEIGHT - MARGIN.bottom });
    const picture = svg("svg", { viewBox: `0 0 ${width} ${HEIGHT}`, "aria-hidden": "true" });
    picture.append(...this.#axes(), ...lines, this.cursor);
    this.plot.replaceChildren(picture);
    this.#leave();
    if (this.data.open) this.#tabulate();
  }

  #scale(filled, width) {
    const xs = filled.flatMap(({ points }) => points.map(([x]) => x));
    const ys = filled.flatMap(({ points }) => points.map(([, y]) => y));
    const { from, to, whole } = this.options;
    const least = (values) => values.reduce((a, b) => Math.min(a, b));
    const most = (values) => values.reduce((a, b) => Math.max(a, b));
    const yTicks = ticks(Math.min(least(ys), from ?? Infinity), Math.max(most(ys), to ?? -Infinity), 4);
    const [left, last] = [least(xs), most(xs)];
    const right = Math.max(last, left + 1);
    const [bottom, top] = [yTicks[0], yTicks.at(-1)];
    const across = width - MARGIN.left - MARGIN.right;
    const down = HEIGHT - MARGIN.top - MARGIN.bottom;
    return {
      width,
      xTicks: ticks(left, right, width < 500 ? 4 : 8, whole ? 1 : 0).filter((x) => x >= left && x <= last),
      yTicks,
      x: (value) => MARGIN.left + ((value - left) / (right - left)) * across,
      y: (value) => MARGIN.top + (1 - (value - bottom) / (top - bottom)) * down,
      back: (pixel) => left + ((pixel - MARGIN.left) / across) * (right - left),
    };
  }

  #axes() {
    const { x, y, xTicks, yTicks, width } = this.scale;
    const rows = yTicks.flatMap((value) => [
      svg("line", { class: "grid", x1: MARGIN.left, x2: width - MARGIN.right, y1: y(value), y2: y(value) }),
      svg("text", { x: MARGIN.left - 6, y: y(value) + 4, "text-anchor": "end" }, this.#say(value, true)),
    ]);
    const columns = xTicks.map((value) =>
      svg("text", { x: x(value), y: HEIGHT - 24, "text-anchor": "middle" }, number(value, 2)));
    const names = [
      svg("text", { class: "name", x: 0, y: 12 }, this.options.yName()),
      svg("text", { class: "name", x: width - MARGIN.right, y: HEIGHT - 6, "text-anchor": "end" },
        this.options.xName()),
    ];
    return [...rows, ...columns, ...names];
  }

  #line({ points, smooth }, index) {
    const { x, y, width } = this.scale;
    const path = (list) => list.map((point) => `${x(point[0]).toFixed(1)},${y(point[1]).toFixed(1)}`).join(" ");
    const line = (list, extra) =>
      svg("polyline", { class: `line series-${index} ${extra}`, points: path(thinned(list, width)) });
    if (points.length <= FEW) {
      const dots = points.map((point) =>
        svg("circle", { class: `dot series-${index}`, cx: x(point[0]), cy: y(point[1]), r: 3 }));
      return [line(points, ""), ...dots];
    }
    return smooth ? [line(points, "faint"), line(smoothed(points), "")] : [line(points, "")];
  }

  /** A value with four digits and no more than three decimals; `exact` for those of an axis, which are round. */
  #say(value, exact = false) {
    const digits = exact ? 3 : 3 - Math.max(0, Math.floor(Math.log10(Math.max(Math.abs(value), 1))));
    return number(value, Math.max(0, digits)) + (this.options.unit ?? "");
  }

  /** The legend says each series' last value; to screen readers it is the chart. */
  #describe() {
    this.legend.replaceChildren(...this.series.map(({ name, points }, index) => {
      const swatch = classed("span", `swatch series-${index}`);
      const last = points.length ? this.#say(points.at(-1)[1]) : "–";
      return element("li", swatch, `${name}: `, element("strong", last));
    }));
  }

  #read(event) {
    if (!this.scale || !this.cursor) return;
    const at = this.scale.back(event.clientX - this.plot.getBoundingClientRect().left);
    const nearest = ({ points }) =>
      points.reduce((best, point) => (Math.abs(point[0] - at) < Math.abs(best[0] - at) ? point : best));
    const found = this.series.filter(({ points }) => points.length).map((series) => [series.name, nearest(series)]);
    const [x] = found[0][1];
    this.cursor.setAttribute("x1", this.scale.x(x));
    this.cursor.setAttribute("x2", this.scale.x(x));
    this.cursor.classList.add("shown");
    const values = found.map(([name, point]) => `${name} ${this.#say(point[1])}`);
    this.readout.textContent = [`${this.options.xName()} ${number(x, 1)}`, ...values].join(" · ");
  }

  #leave() {
    this.cursor?.classList.remove("shown");
    this.readout.textContent = "\u00a0";
  }

  #tabulate() {
    const head = element("tr", ...[this.options.xName(), ...this.series.map(({ name }) => name)]
      .map((name) => element("th", name)));
    const rows = new Map();
    this.series.forEach(({ points }, index) => {
      for (const [x, y] of thinned(points, ROWS)) {
        if (!rows.has(x)) rows.set(x, this.series.map(() => ""));
        rows.get(x)[index] = this.#say(y);
      }
    });
    const body = [...rows].sort(([a], [b]) => a - b).map(([x, values]) =>
      element("tr", ...[number(x, 1), ...values].map((value) => element("td", value))));
    this.rows.replaceChildren(element("table", element("thead", head), element("tbody", ...body)));
  }
}
