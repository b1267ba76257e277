// Jobs, newest first, by filters that stand in the address.
import { get, said } from "./api.js";
import { go } from "./app.js";
import { button, field, h, select, show } from "./dom.js";
import { jobTable } from "./overview.js";

const STATUSES = ["queued", "in_progress", "partial", "completed", "failed", "cancelled"];
const FILTERS = ["status", "tenant", "job_type", "crawl_id"];
const PAGE = 50;
const REFRESH_MS = 4000;
const ID = /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/i;

export function jobs(main, { params }) {
  const filter = Object.fromEntries(FILTERS.map((name) => [name, params[name]]));
  const list = h("div", { id: "job-list" });
  const told = h("p", { class: "error", role: "alert" });
  const pager = h("div", { class: "pager" });
  const input = (name, label, attributes = {}) => field(label, h("input", { name, value: params[name] || "", size: 14, autocomplete: "off", spellcheck: "false", ...attributes }));
  const form = h("form", { class: "filters", onsubmit: search, role: "search" },
    input("job_id", "Job id", { size: 38, placeholder: "opens that job" }),
    field("Status", select("status", params.status, [["", "any"], ...STATUSES.map((name) => [name, name.replace("_", " ")])])),
    input("tenant", "Tenant"), input("job_type", "Job type"), input("crawl_id", "Crawl"),
    h("button", { type: "submit" }, "Search"), button("Clear", () => go(["jobs"], {}), { class: "plain" }));
  form.elements.status.addEventListener("change", () => form.requestSubmit());
  main.append(h("h1", {}, "Jobs"), form, told, h("section", { class: "card" }, list), pager);
  const gone = new AbortController();
  const cursors = [null];
  let at = Date.now();

  function search(event) {
    event.preventDefault();
    const values = Object.fromEntries(new FormData(form));
    const id = values.job_id.trim();
    if (id) return ID.test(id) ? go(["jobs", id], {}) : (told.textContent = "A job's id looks like 01890a5d-ac96-774b-bcce-b302099a8057.");
    delete values.job_id;
    go(["jobs"], values);
  }

  async function load() {
    at = Date.now();
    try {
      const page = await get("jobs", { ...filter, limit: PAGE, cursor: cursors[cursors.length - 1] }, gone.signal);
      told.textContent = "";
      // A rare match may be on a later page: the search goes on from there.
      const empty = page.next_cursor ? "None among the newest: look at older ones." : "No job matches.";
      show(list, jobTable(page.jobs, Object.values(filter).some(Boolean) ? empty : undefined));
      show(pager, cursors.length > 1 && button("Newest", () => move(() => cursors.splice(1))), cursors.length > 1 && button("Newer", () => move(() => cursors.pop())), page.next_cursor && button("Older", () => move(() => cursors.push(page.next_cursor))));
    } catch (error) {
      if (!gone.signal.aborted) told.textContent = said(error);
    }
  }
  function move(how) {
    how();
    load();
  }
  load();
  return { close: () => gone.abort(), update: () => cursors.length === 1 && Date.now() - at >= REFRESH_MS && load() };
}
