// Small charts in SVG: stacked areas over the last ten minutes.
import { h } from "./dom.js";
import { clock } from "./format.js";

const WIDTH = 600;
const HEIGHT = 120;
export const SPAN_MS = 600_000;

// `points`: [time, [value of each series]]; `series`: [name, class]. `unit` says a value in words.
export function chart(title, points, series, unit) {
  const now = points.length ? points[points.length - 1][0] : Date.now();
  const from = now - SPAN_MS;
  const shown = points.filter(([time]) => time >= from);
  const sums = shown.map(([, values]) => values.reduce((sum, value) => sum + value, 0));
  const top = nice(Math.max(1e-9, ...sums));
  const x = (time) => ((time - from) / SPAN_MS) * WIDTH;
  const y = (value) => HEIGHT - (value / top) * (HEIGHT - 4);
  const base = shown.map(() => 0);
  const areas = series.map(([, kind], at) => {
    const lower = shown.map(([time], i) => `${x(time).toFixed(1)},${y(base[i]).toFixed(1)}`);
    shown.forEach(([, values], i) => (base[i] += values[at]));
    const upper = shown.map(([time], i) => `${x(time).toFixed(1)},${y(base[i]).toFixed(1)}`);
    return shown.length < 2 ? null : h("svg:polygon", { class: `area ${kind}`, points: [...upper, ...lower.reverse()].join(" ") });
  });
  const grid = [0.5, 1].map((part) => h("svg:line", { class: "grid", x1: 0, x2: WIDTH, y1: y(top * part), y2: y(top * part) }));
  const last = sums.length ? sums[sums.length - 1] : 0;
  const legend = series.length > 1 && h("ul", { class: "legend" }, series.map(([name, kind]) => h("li", {}, h("i", { class: `dot ${kind}` }), name)));
  const most = sums.length ? Math.max(...sums) : 0;
  const svg = h("svg:svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img", "aria-label": `${title}: now ${unit(last)}, at most ${unit(most)} in ten minutes` }, grid, areas);
  const reading = h("output", { class: "reading" });
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    const time = from + ((event.clientX - box.left) / box.width) * SPAN_MS;
    const near = shown.reduce((best, point) => (Math.abs(point[0] - time) < Math.abs((best || point)[0] - time) ? point : best || point), null);
    if (near) reading.textContent = `${clock(near[0]).slice(11)} UTC: ${series.map(([name], at) => `${series.length > 1 ? `${name} ` : ""}${unit(near[1][at])}`).filter((_, at) => series.length === 1 || near[1][at] > 0).join(", ") || unit(0)}`;
  });
  svg.addEventListener("pointerleave", () => (reading.textContent = ""));
  return h("figure", { class: "chart" }, h("figcaption", {}, h("span", {}, title), reading), h("div", { class: "plot" }, svg, h("span", { class: "top" }, unit(top)), h("span", { class: "ages" }, h("span", {}, "10 min ago"), h("span", {}, "now"))), legend || null);
}

function nice(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].map((step) => step * power).find((step) => step >= value * 0.999);
}

// A bar of parts that add up: what became of a job's resources.
const PARTS = [["resource_completed", "stored"], ["resource_reused", "reused"], ["resource_filtered", "filtered"], ["resource_failed", "failed"], ["resource_cancelled", "cancelled"], ["resource_pending", "pending"]];

export function bar(job) {
  const total = Math.max(1, job.resource_total);
  let at = 0;
  const parts = PARTS.map(([name, kind]) => {
    const width = (job[name] / total) * 100;
    const part = width > 0 && h("svg:rect", { class: `area ${kind}`, x: at, y: 0, width, height: 8 });
    at += width;
    return part;
  });
  const words = PARTS.filter(([name]) => job[name]).map(([name, kind]) => `${job[name]} ${kind}`).join(", ") || "no resources";
  return h("svg:svg", { class: "bar", viewBox: "0 0 100 8", preserveAspectRatio: "none", role: "img", "aria-label": words }, h("svg:title", {}, words), parts);
}
