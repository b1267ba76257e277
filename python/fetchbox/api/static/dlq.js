// What failed for good: seen in groups, one by one, put back to work, or forgotten.
import { ask, get, said } from "./api.js";
import { go } from "./app.js";
import { button, dialog, field, h, link, show, table } from "./dom.js";
import { ago, clock, count } from "./format.js";

const FILTERS = ["code", "host", "job", "tenant", "since"];
const GROUPS = ["code", "host", "job"];
const PAGE = 50;

export function deadLetters(main, { id, params }) {
  return id ? story(main, id) : list(main, params);
}

function list(main, params) {
  const gone = new AbortController();
  const filter = Object.fromEntries(FILTERS.filter((name) => params[name]).map((name) => [name, params[name]]));
  const by = GROUPS.includes(params.by) ? params.by : "code";
  const [told, done, groups, entries, pager] = [h("p", { class: "error", role: "alert" }), h("p", { class: "done", role: "status" }), h("div", { id: "groups" }), h("div", { id: "entries" }), h("div", { class: "pager" })];
  const input = (name, label, attributes = {}) => field(label, h("input", { name, value: params[name] || "", size: 16, autocomplete: "off", spellcheck: "false", ...attributes }));
  const form = h("form", { class: "filters", role: "search", onsubmit: search }, input("code", "Code"), input("host", "Host"), input("job", "Job id", { size: 36 }), input("tenant", "Tenant"), input("since", "Since", { placeholder: "15m, 2h, 7d, 2026-01-31", size: 22 }), h("button", { type: "submit" }, "Filter"), button("Clear", () => go(["dead-letters"], {}), { class: "plain" }));
  const tabs = h("div", { class: "tabs", role: "group", "aria-label": "Count by" }, GROUPS.map((name) => h("button", { type: "button", "aria-pressed": String(by === name), onclick: () => go(["dead-letters"], { ...filter, by: name }) }, `by ${name}`)));
  const cursors = [null];
  const reload = () => (loadGroups(), load());
  const order = (words) => (done.textContent = words) && reload();
  main.append(h("div", { class: "title" }, h("h1", {}, "Dead letters"), h("div", { class: "actions" }, button("Replay these…", () => replay(filter, order)), button("Purge these…", () => purge(filter, order), { class: "danger" }))), form, told, done, h("section", { class: "card" }, tabs, groups), h("section", { class: "card" }, h("h2", {}, "Entries"), entries), pager);

  function search(event) {
    event.preventDefault();
    go(["dead-letters"], { ...Object.fromEntries([...new FormData(form)].map(([name, value]) => [name, value.trim()])), by });
  }
  const failed = (error) => gone.signal.aborted || (told.textContent = said(error));

  async function loadGroups() {
    try {
      const page = await get("dlq/groups", { ...filter, by, limit: 20 }, gone.signal);
      show(groups, table([
        { name: by, of: (group) => link(["dead-letters"], { ...filter, [by]: group[by], by }, group[by] || "(none)") },
        { name: "Dead letters", right: true, of: (group) => count(group.count) },
        { name: "Last", right: true, of: (group) => `${ago(group.newest_at)} ago` },
      ], page.groups, { empty: "No dead letters." }), h("p", { class: "note" }, `${count(page.total)} in all${page.others ? `, ${count(page.others)} of them in smaller groups` : ""}`));
    } catch (error) {
      failed(error);
    }
  }

  async function load() {
    try {
      const page = await get("dlq", { ...filter, limit: PAGE, cursor: cursors[cursors.length - 1] }, gone.signal);
      told.textContent = "";
      show(entries, table([
        { name: "Failed", of: (entry) => h("span", { title: entry.failed_at }, `${ago(entry.failed_at)} ago`) },
        { name: "Code", of: (entry) => link(["dead-letters", entry.id], {}, entry.code) },
        { name: "HTTP", right: true, of: (entry) => entry.http_status || "" },
        { name: "Host", class: "clip", of: (entry) => entry.host || "" },
        { name: "URL", class: "clip long", of: (entry) => h("span", { title: entry.url || "" }, entry.url || "") },
        { name: "Message", class: "clip long", of: (entry) => h("span", { title: entry.message || "" }, entry.message || "") },
        { name: "Tries", right: true, of: (entry) => entry.attempts },
        { name: "Job", class: "mono clip", of: (entry) => link(["jobs", entry.job_id], {}, entry.job_id) },
      ], page.entries, { empty: page.next_cursor ? "None among the newest: look at older ones." : "No dead letter matches.", key: (entry) => entry.id }));
      show(pager, cursors.length > 1 && button("Newer", () => (cursors.pop(), load())), page.next_cursor && button("Older", () => (cursors.push(page.next_cursor), load())));
    } catch (error) {
      failed(error);
    }
  }
  reload();
  return { close: () => gone.abort() };
}

function story(main, id) {
  const gone = new AbortController();
  const place = h("div", { class: "stack" });
  const told = h("p", { class: "error", role: "alert" });
  const done = h("p", { class: "done", role: "status" });
  main.append(told, done, place);
  async function load() {
    try {
      const entry = await get(`dlq/${encodeURIComponent(id)}`, {}, gone.signal);
      const fact = (name, value) => value !== null && value !== undefined && value !== "" && [h("dt", {}, name), h("dd", {}, value)];
      const order = (words) => ((done.textContent = words), load());
      const json = (value) => h("pre", { class: "story" }, JSON.stringify(value, null, 2));
      show(place,
        h("div", { class: "title" }, h("h1", {}, h("span", { class: "pill failed" }, entry.state), " ", entry.code), entry.state === "dead" && h("div", { class: "actions" }, button("Replay…", () => replay({ id }, order)), button("Purge…", () => purge({ id }, order), { class: "danger" }))),
        h("section", { class: "card" }, h("p", { class: "last-error" }, entry.message || "There is no message."), h("dl", { class: "facts" }, fact("URL", entry.url), fact("Resource", entry.resource_id), fact("Job", link(["jobs", entry.job_id], {}, entry.job_id)), fact("Type", entry.job_type), fact("Tenant", entry.tenant), fact("HTTP status", entry.http_status), fact("Attempts", entry.attempts), fact("Proxy", entry.proxy), fact("Failed", `${clock(entry.failed_at)} UTC (${ago(entry.failed_at)} ago)`), fact("Replayed", entry.replayed_at && `${clock(entry.replayed_at)} UTC`))),
        h("section", { class: "card" }, h("h2", {}, "What the job's log says of it"), entry.log.length ? h("ol", { class: "log" }, entry.log.map((line) => h("li", {}, h("time", {}, (line.timestamp || "").slice(11, 23)), h("b", { class: `level ${line.level}` }, line.level), h("span", { class: "what" }, line.message), h("span", { class: "fields" }, Object.entries(line.fields || {}).map(([name, value]) => `${name}=${value}`).join(" "))))) : h("p", { class: "empty" }, "Nothing.")),
        h("section", { class: "card" }, h("h2", {}, "Every outcome of this resource"), json(entry.history)),
        h("section", { class: "card" }, h("h2", {}, "Task and context"), json({ task: entry.task, context: entry.context })));
    } catch (error) {
      if (!gone.signal.aborted) told.textContent = error.status === 404 ? "There is no such entry: it was purged, or its job was forgotten." : said(error);
    }
  }
  load();
  return { close: () => gone.abort() };
}

const words = (filter) => (Object.keys(filter).length ? Object.entries(filter).map(([name, value]) => `${name} = ${value}`).join(", ") : "every dead letter");
const letters = (number) => `${count(number)} dead letter${number === 1 ? "" : "s"}`;

// First what would be done, then the same order for real.
function orderly(title, filter, verb, path, extra, body, after, order) {
  const told = h("p", { class: "error", role: "alert" });
  const found = h("p", { class: "found", role: "status" });
  const act = button(verb, () => carry(false), { class: verb === "Purge" ? "danger" : "act", disabled: true });
  const look = button("Dry run", () => carry(true));
  const box = dialog(title, h("p", {}, "Which: ", h("strong", {}, words(filter))), extra, found, told, h("div", { class: "actions" }, button("Close", () => box.close()), look, act));
  // Whatever is changed has to be looked at again first.
  box.addEventListener("input", () => ((act.disabled = true), (found.textContent = "")));
  async function carry(dry) {
    told.textContent = "";
    look.disabled = act.disabled = true;
    try {
      const answer = await ask("POST", path, { body: { filter, ...body(), ...(dry ? { dry_run: true } : {}) } });
      const refused = answer.refused ? `; ${letters(answer.refused)} cannot be, and stay` : "";
      if (dry) {
        found.textContent = `${letters(answer.count)} would be ${after}${refused}.`;
        act.textContent = `${verb} ${count(answer.count)}`;
        act.disabled = !answer.count;
        if (answer.count) act.focus();
        return;
      }
      box.close();
      order(`${letters(answer.count)} ${answer.count === 1 ? "was" : "were"} ${after}${refused}.`);
    } catch (error) {
      told.textContent = said(error);
    } finally {
      look.disabled = false;
    }
  }
}

function replay(filter, order) {
  const headers = h("textarea", { name: "headers", rows: 3, placeholder: "Referer: https://example.com/\nCookie:", spellcheck: "false" });
  const [pool, from, to] = [h("input", { name: "pool", autocomplete: "off" }), h("input", { name: "from", autocomplete: "off", placeholder: "http://old.example/" }), h("input", { name: "to", autocomplete: "off", placeholder: "https://new.example/" })];
  const changes = () => {
    const named = headers.value.split("\n").map((line) => line.trim()).filter(Boolean).map((line) => [line.split(":", 1)[0].trim(), line.slice(line.indexOf(":") + 1).trim(), line.includes(":")]);
    return {
      ...(named.length ? { headers: Object.fromEntries(named.map(([name, value, has]) => [name, has && value ? value : null])) } : {}),
      ...(pool.value.trim() ? { proxy_pool: pool.value.trim() } : {}),
      ...(from.value ? { url_replace: { from: from.value, to: to.value } } : {}),
    };
  };
  orderly("Replay dead letters", filter, "Replay", "dlq/replay", h("details", {}, h("summary", {}, "Change them on the way"), field("Headers to set; a name without a value takes it away", headers), field("Proxy pool", pool), field("In URLs replace", from), field("by", to)), changes, "put back to work", order);
}

function purge(filter, order) {
  orderly("Purge dead letters", filter, "Purge", "dlq/purge", h("p", {}, "They are forgotten: their resources stay failed and can never be replayed."), () => ({}), "forgotten", order);
}
