// The shell: who may look, what is looked at, and how the service stands.
import { ask, get, said, whenLoggedOut } from "./api.js";
import { button, field, h, link, show } from "./dom.js";
import { deadLetters } from "./dlq.js";
import { duration, ago, setClock } from "./format.js";
import { job } from "./job.js";
import { jobs } from "./jobs.js";
import { overview, remember } from "./overview.js";

const POLL_MS = 2000;
const PAGES = { overview, jobs, "dead-letters": deadLetters };
const [bar, alerts, main] = ["bar", "alerts", "main"].map((id) => document.getElementById(id));
const state = { session: null, seen: null, failed: null, seenAt: 0, page: null };

// ---- the page -------------------------------------------------------------------------------------------------------------------

function place() {
  const [path, query] = location.hash.replace(/^#\/?/, "").split("?");
  let parts = [];
  try {
    parts = path.split("/").filter(Boolean).map(decodeURIComponent);
  } catch {
    parts = [];
  }
  return { name: parts[0] || "overview", id: parts[1], params: Object.fromEntries(new URLSearchParams(query || "")) };
}

function open() {
  if (!state.session) return;
  const { name, id, params } = place();
  if (name === "main") return;
  state.page?.close?.();
  const make = name === "jobs" && id ? job : PAGES[name] || overview;
  document.title = `${{ jobs: id ? `Job ${id}` : "Jobs", "dead-letters": "Dead letters" }[name] || "Overview"} – FetchBox`;
  main.replaceChildren();
  state.page = make(main, { id, params });
  if (state.seen) state.page.update?.(state.seen);
  head();
}

// What is typed into a filter goes into the address: a view can be sent to somebody else.
export function go(path, params) {
  location.hash = link(path, params).getAttribute("href");
}

// ---- how it stands --------------------------------------------------------------------------------------------------------------

function head() {
  const { name } = place();
  const entry = (path, label) => h("a", { href: `#/${path}`, "data-key": path, "aria-current": name === path ? "page" : null }, label);
  const away = state.failed && Date.now() - state.seenAt > 2 * POLL_MS;
  const well = state.seen?.status === "ok";
  const pill = h("span", { class: `pill ${away ? "bad" : well ? "ok" : state.seen ? "bad" : ""}`, id: "standing" }, away ? "no answer" : state.seen ? (well ? "all well" : "degraded") : "…");
  const leave = state.session?.expires_at && button("Log out", logOut, { class: "plain" });
  show(bar, h("a", { class: "brand", href: "#/overview", "data-key": "brand" }, h("img", { src: "dashboard/icon.svg", alt: "", width: 22, height: 22 }), "FetchBox"), h("nav", { "aria-label": "Pages" }, entry("overview", "Overview"), entry("jobs", "Jobs"), entry("dead-letters", "Dead letters")), h("span", { class: "gap" }), pill, leave);
  bar.hidden = !state.session;
  const down = state.seen?.components?.hub?.status === "degraded";
  // What nobody knows while the hub is away needs no line of its own.
  const bad = Object.entries(state.seen?.components || {}).filter(([, { status, reason }]) => status !== "ok" && !(down && reason?.startsWith("unknown")));
  const lines = [];
  if (away) lines.push(["no answer", `${state.failed.message}${state.seenAt ? `; what you see is ${duration(Math.round((Date.now() - state.seenAt) / 1000))} old` : ""}`, null]);
  else for (const [component, { reason, since }] of bad) lines.push([component.replace("_", " "), reason || "degraded", since]);
  show(alerts, state.session && lines.map(([what, why, since]) => h("p", { class: "alert" }, h("strong", {}, what), ` ${why}`, since && h("span", { class: "since" }, ` for ${ago(since)}`))));
  document.body.classList.toggle("stale", Boolean(away || down));
}

async function poll() {
  if (!state.session || document.hidden) return;
  try {
    const seen = await get("overview", state.seen ? {} : { history: true });
    Object.assign(state, { seen, failed: null, seenAt: Date.now() });
    setClock(seen.at);
    remember(seen);
  } catch (error) {
    state.failed = error;
    // Without the hub there are no figures, but there is health, and the reason.
    const health = error.status === 503 && (await ask("GET", "health", { accept: [503] }).catch(() => null));
    if (health && state.session) Object.assign(state, { seen: { ...state.seen, ...health }, failed: null, seenAt: Date.now() });
  }
  if (!state.session) return;
  head();
  if (state.seen && !state.failed) state.page?.update?.(state.seen);
}

async function keepPolling() {
  for (;;) {
    await poll();
    await new Promise((resolve) => setTimeout(resolve, POLL_MS));
  }
}

// ---- who may look ---------------------------------------------------------------------------------------------------------------

function logIn(message) {
  state.page?.close?.();
  Object.assign(state, { session: null, seen: null, page: null });
  document.body.classList.remove("stale");
  document.title = "Log in – FetchBox";
  head();
  const told = h("p", { role: "alert", class: "error" }, message || "");
  const token = h("input", { type: "password", name: "token", autocomplete: "current-password", required: true, spellcheck: "false" });
  const form = h("form", { class: "login", onsubmit: enter }, h("h1", {}, h("img", { src: "dashboard/icon.svg", alt: "", width: 28, height: 28 }), " FetchBox"), field("Operator token", token), h("button", { type: "submit" }, "Log in"), told, h("p", { class: "hint" }, "This browser keeps a session of twelve hours, not the token."));
  main.replaceChildren(form);
  token.focus();
  async function enter(event) {
    event.preventDefault();
    told.textContent = "";
    try {
      state.session = await ask("POST", "session", { body: { token: token.value } });
      open();
      poll();
    } catch (error) {
      told.textContent = error.status === 401 ? "This is not the operator token." : said(error);
      token.select();
    }
  }
}

async function logOut() {
  await ask("DELETE", "session").catch(() => {});
  logIn();
}

async function begin() {
  try {
    state.session = await get("session");
    open();
  } catch (error) {
    if (error.status === 401) logIn();
    else {
      main.replaceChildren(h("p", { class: "alert" }, said(error)), button("Try again", begin));
      return;
    }
  }
  if (!begin.polling) {
    begin.polling = true;
    keepPolling();
  }
}

whenLoggedOut(() => state.session && logIn("The session has ended: enter the token again."));
addEventListener("hashchange", open);
document.addEventListener("visibilitychange", () => document.hidden || poll());
begin();
