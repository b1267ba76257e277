// One job: its counts, its resources, its log as it grows.
import { ask, get, jobPath, said } from "./api.js";
import { bar } from "./charts.js";
import { button, dialog, h, link, select, show, table } from "./dom.js";
import { ago, bytes, clock, count } from "./format.js";

const STATES = [["pending", "resource_pending"], ["stored", "resource_completed"], ["reused", "resource_reused"], ["filtered", "resource_filtered"], ["failed", "resource_failed"], ["cancelled", "resource_cancelled"]];
const PAGE = 25;
const LINES = 2000;
const LEVELS = ["TRACE", "DEBUG", "INFO", "WARN", "ERROR"];

export function job(main, { id, params }) {
  const gone = new AbortController();
  const [top, told, resources, pager, states] = [h("div", { class: "stack" }), h("p", { class: "error", role: "alert" }), h("div", { id: "resources" }), h("div", { class: "pager" }), h("div", { class: "tabs", role: "group", "aria-label": "State" })];
  const log = liveLog(id);
  main.append(told, top, h("section", { class: "card" }, h("h2", {}, "Resources"), states, resources, pager), log.section);
  const cursors = [null];
  let state = params.state || "";
  let now = null;
  let expanded = null;

  async function load() {
    try {
      now = await get(jobPath(id), {}, gone.signal);
      told.textContent = "";
      show(top, head(now, cancel));
      show(states, tab("", "all", now.resource_total), STATES.map(([name, key]) => (now[key] || name === state) && tab(name, name, now[key])));
    } catch (error) {
      if (!gone.signal.aborted) told.textContent = error.status === 404 ? "There is no such job. It may have been forgotten (retention.job_ttl)." : said(error);
      return false;
    }
    return true;
  }

  async function list() {
    try {
      const page = await get(jobPath(id, "/resources"), { state, limit: PAGE, cursor: cursors[cursors.length - 1] }, gone.signal);
      show(resources, resourceTable(page.resources, expanded, (which) => ((expanded = expanded === which ? null : which), list())));
      show(pager, cursors.length > 1 && button("Back", () => (cursors.pop(), list())), page.next_cursor && button("More", () => (cursors.push(page.next_cursor), list())));
    } catch (error) {
      if (!gone.signal.aborted) told.textContent = said(error);
    }
  }

  function tab(name, label, number) {
    return h("button", { type: "button", "data-key": `state ${name}`, "aria-pressed": String(state === name), onclick: () => ((state = name), cursors.splice(1), list(), load()) }, label, " ", h("span", { class: "number" }, count(number)));
  }

  function cancel() {
    const fault = h("p", { class: "error", role: "alert" });
    const box = dialog("Cancel this job?", h("p", {}, `${count(now.resource_pending)} pending resources will not be downloaded. What is stored stays. This cannot be undone.`), fault,
      h("div", { class: "actions" }, button("Keep it", () => box.close()), button("Cancel the job", async () => {
        try {
          await ask("POST", jobPath(id, "/cancel"));
          box.close();
          refresh();
        } catch (error) {
          fault.textContent = said(error);
        }
      }, { class: "danger" })));
  }

  async function refresh() {
    const before = now && JSON.stringify(STATES.map(([, key]) => now[key]));
    if ((await load()) && before !== JSON.stringify(STATES.map(([, key]) => now[key]))) list();
  }

  load().then((there) => {
    if (!there || gone.signal.aborted) return;
    list();
    log.open();
  });
  return {
    close() {
      gone.abort();
      log.close();
    },
    update: () => now && now.resource_pending && refresh(),
  };
}

function head(job, cancel) {
  const fact = (name, value) => value !== null && value !== undefined && value !== "" && [h("dt", {}, name), h("dd", {}, value)];
  const when = (time) => time && h("span", { title: time }, `${clock(time)} UTC (${ago(time)} ago)`);
  const error = job.last_error;
  return [
    h("div", { class: "title" }, h("h1", {}, h("span", { class: `pill ${job.status}` }, job.status.replace("_", " ")), " ", h("span", { class: "mono", id: "job-id" }, job.job_id)), h("div", { class: "actions" }, job.resource_pending > 0 && button("Cancel…", cancel, { class: "danger" }), h("a", { class: "button", href: `operators/${jobPath(job.job_id, "/manifest")}`, target: "_blank", rel: "noopener", "data-key": "manifest" }, "Manifest"), h("a", { class: "button", href: `operators/${jobPath(job.job_id, "/receipt")}`, target: "_blank", rel: "noopener", "data-key": "receipt" }, "Receipt"))),
    h("section", { class: "card" }, h("div", { class: "big" }, bar(job)), h("dl", { class: "counts" }, STATES.map(([name, key]) => h("div", {}, h("dt", {}, h("i", { class: `dot ${name}` }), name), h("dd", {}, count(job[key])))), h("div", {}, h("dt", {}, "total"), h("dd", {}, count(job.resource_total)))),
      error && h("p", { class: "last-error" }, h("strong", {}, error.code), ` ${error.message || ""} `, error.context?.resource_id && h("span", { class: "note" }, `resource ${error.context.resource_id}`), " ", link(["dead-letters"], { job: job.job_id }, "dead letters of this job")),
      h("dl", { class: "facts" }, fact("Type", job.job_type), fact("Tenant", job.tenant), fact("Crawl", job.crawl_id && link(["jobs"], { crawl_id: job.crawl_id }, job.crawl_id)), fact("Priority", job.priority), fact("Created", when(job.created_at)), fact("Updated", when(job.updated_at)), fact("Finished", when(job.finished_at)), fact("Stored", bytes(job.bytes_stored)), fact("Manifest", job.manifest_key), fact("Posted", job.origin === "direct" ? "directly to the broker" : null), fact("Trace", job.trace_id))),
  ];
}

function resourceTable(rows, expanded, toggle) {
  const columns = [
    { name: "State", of: (row) => h("span", { class: `pill ${row.state}` }, row.state) },
    { name: "Id", class: "clip", of: (row) => h("button", { type: "button", class: "plain", "data-key": `resource ${row.index}`, "aria-expanded": String(expanded === row.index), onclick: () => toggle(row.index) }, row.id) },
    { name: "URL", class: "clip long", of: (row) => h("span", { title: row.url }, row.url) },
    { name: "Code", of: (row) => row.code || "" },
    { name: "HTTP", right: true, of: (row) => row.http_status || "" },
    { name: "Size", right: true, of: (row) => (row.size || row.state === "stored" ? bytes(row.size) : "") },
    { name: "Tries", right: true, of: (row) => row.attempts ?? "" },
    { name: "Message or object", class: "clip long", of: (row) => h("span", { title: row.message || row.storage_url || "" }, row.message || row.storage_url || "") },
  ];
  const found = table(columns, rows, { empty: "No resource in this state.", key: (row) => row.index });
  const open = rows.find((row) => row.index === expanded);
  if (open) found.querySelector(`tr[data-row="${Number(expanded)}"]`)?.after(h("tr", {}, h("td", { colspan: columns.length }, h("pre", { class: "story" }, JSON.stringify(open, null, 2)))));
  return found;
}

// The log comes by itself; who scrolls up is left alone.
function liveLog(id) {
  const lines = h("ol", { class: "log", tabindex: 0, "aria-label": "Log lines" });
  const standing = h("span", { class: "note", id: "log-state" }, "");
  const level = select("level", "", [["", "all levels"], ...LEVELS.slice(1).map((name) => [name, `${name.toLowerCase()} and above`])]);
  level.setAttribute("aria-label", "Level");
  level.addEventListener("change", () => {
    for (const line of lines.children) line.hidden = hides(line.dataset.level);
  });
  const hides = (name) => level.value !== "" && LEVELS.indexOf(name) < LEVELS.indexOf(level.value);
  const section = h("section", { class: "card" }, h("h2", {}, "Log", standing, level), lines);
  let source = null;
  let waiting = [];
  let total = 0;

  function flush() {
    const low = lines.scrollHeight - lines.scrollTop - lines.clientHeight < 40;
    lines.append(...waiting.splice(0).slice(-LINES));
    while (lines.children.length > LINES) lines.firstChild.remove();
    if (low) lines.scrollTop = lines.scrollHeight;
    standing.textContent = `${source ? "live" : "ended"}, ${count(total)} line${total === 1 ? "" : "s"}${total > LINES ? `, the newest ${count(LINES)} are shown` : ""}`;
  }

  function add(record) {
    total += 1;
    const fields = Object.entries(record.fields || {}).map(([name, value]) => `${name}=${value}`).join(" ");
    const line = h("li", { "data-level": record.level }, h("time", {}, (record.timestamp || "").slice(11, 23)), h("b", { class: `level ${record.level}` }, record.level), record.resource_id && h("span", { class: "who" }, record.resource_id), h("span", { class: "what" }, record.message), fields && h("span", { class: "fields" }, fields));
    line.hidden = hides(record.level);
    if (waiting.push(line) === 1) setTimeout(flush, 100);
  }

  return {
    section,
    open() {
      source = new EventSource(`operators/${jobPath(id, "/logs")}`);
      standing.textContent = "live";
      source.addEventListener("log", (event) => add(JSON.parse(event.data)));
      source.addEventListener("end", () => {
        source?.close();
        source = null;
        setTimeout(flush, 100);
      });
      source.onopen = flush;
      source.onerror = () => (standing.textContent = source?.readyState === EventSource.CLOSED ? "ended" : "connecting again…");
    },
    close() {
      source?.close();
      source = null;
    },
  };
}
