// Numbers and times for people.

const whole = new Intl.NumberFormat("en");

export const count = (value) => (value === null || value === undefined ? "–" : whole.format(value));

export function short(value) {
  if (value < 10) return String(Math.round(value * 10) / 10);
  if (value < 10_000) return whole.format(Math.round(value));
  for (const [size, name] of [[1e9, "G"], [1e6, "M"], [1e3, "k"]]) if (value >= size) return `${(value / size).toPrecision(3)} ${name}`;
  return whole.format(value);
}

export function bytes(value) {
  if (value === null || value === undefined) return "–";
  const units = ["B", "kB", "MB", "GB", "TB", "PB"];
  let at = 0;
  while (value >= 1000 && at < units.length - 1) [value, at] = [value / 1000, at + 1];
  return `${at ? value.toPrecision(3) : Math.round(value)} ${units[at]}`;
}

export function duration(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  if (seconds < 1) return `${Math.round(seconds * 1000)} ms`;
  if (seconds < 60) return `${Math.round(seconds * 10) / 10} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ${Math.floor(seconds % 60)} s`;
  if (seconds < 86400) return `${Math.floor(seconds / 3600)} h ${Math.floor((seconds % 3600) / 60)} min`;
  return `${Math.floor(seconds / 86400)} d ${Math.floor((seconds % 86400) / 3600)} h`;
}

// The service's clock is what its times are compared with: that of the browser may be wrong.
let ahead = 0;
export function setClock(at) {
  ahead = Date.parse(at) - Date.now();
}

export function ago(time) {
  const seconds = Math.round((Date.now() + ahead - Date.parse(time)) / 1000);
  return !time ? "–" : seconds < 1 ? "0 s" : duration(seconds);
}

export function clock(time) {
  if (!time) return "–";
  const date = new Date(time);
  return Number.isNaN(date.getTime()) ? String(time) : `${date.toISOString().slice(0, 10)} ${date.toISOString().slice(11, 19)}`;
}
