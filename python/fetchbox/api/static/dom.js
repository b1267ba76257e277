// Elements are built, never parsed: whatever a job, a URL or a message holds is text here and stays text.

export function h(tag, attributes = {}, ...children) {
  const element = tag.startsWith("svg:") ? document.createElementNS("http://www.w3.org/2000/svg", tag.slice(4)) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "value") element.value = value;
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false).map((child) => (child instanceof Node ? child : String(child))));
  return element;
}

// What a place holds is replaced; where the keyboard is, is kept if the new content has the same thing.
export function show(place, ...children) {
  const held = document.activeElement;
  const key = place.contains(held) ? held.getAttribute("data-key") : null;
  place.replaceChildren(...children.flat(Infinity).filter(Boolean));
  if (key) for (const element of place.querySelectorAll("[data-key]")) if (element.getAttribute("data-key") === key) element.focus({ preventScroll: true });
}

export function table(columns, rows, { empty = "Nothing here.", key } = {}) {
  if (!rows.length) return h("p", { class: "empty" }, empty);
  const head = h("tr", {}, columns.map((column) => h("th", { scope: "col", class: column.right && "right" }, column.name)));
  const body = rows.map((row) => h("tr", { "data-row": key ? key(row) : null }, columns.map((column) => h("td", { class: [column.right && "right", column.class].filter(Boolean).join(" ") || null }, column.of(row)))));
  return h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Table" }, h("table", {}, h("thead", {}, head), h("tbody", {}, body)));
}

export function link(path, params, ...children) {
  const query = new URLSearchParams(Object.entries(params || {}).filter(([, value]) => value)).toString();
  const href = `#/${path.map(encodeURIComponent).join("/")}${query ? `?${query}` : ""}`;
  return h("a", { href, "data-key": href }, ...children);
}

export const button = (label, onclick, attributes = {}) => h("button", { type: "button", onclick, "data-key": `button ${label}`, ...attributes }, label);

export function field(label, input) {
  return h("label", { class: "field" }, h("span", {}, label), input);
}

export function select(name, value, options) {
  return h("select", { name }, options.map(([key, label]) => h("option", { value: key, selected: key === (value || "") }, label)));
}

// A dialog that is gone when it is closed.
export function dialog(title, ...children) {
  const element = h("dialog", { "aria-label": title, onclose: () => element.remove() }, h("h2", {}, title), ...children);
  document.body.append(element);
  element.showModal();
  return element;
}
