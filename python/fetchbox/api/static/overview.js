// How the service is doing, at one look.
import { get } from "./api.js";
import { bar, chart, SPAN_MS } from "./charts.js";
import { h, link, show, table } from "./dom.js";
import { ago, bytes, count, duration, short } from "./format.js";

const STATES = [["stored", "stored"], ["reused", "reused"], ["filtered", "filtered"], ["failed", "failed"], ["cancelled", "cancelled"]];
const SLOW_MS = 10_000;
const RATE_MS = 10_000;

// Samples as the hub notes them: time, the five sums of STATES, bytes stored, pending, lag.
let samples = [];

export function remember(seen) {
  if (seen.history) samples = seen.history;
  const { settled, pending } = seen.resources;
  const sample = [Date.parse(seen.at), ...STATES.map(([name]) => settled[name]), seen.bytes_stored, pending, lagOf(seen)];
  const last = samples[samples.length - 1];
  if (!last || sample[0] > last[0]) samples.push(sample);
  samples = samples.filter(([time]) => time > sample[0] - SPAN_MS - 5000);
}

const lagOf = (seen) => seen.queues.find((queue) => queue.topic === "jobs.tasks")?.lag || 0;

// What came between two samples, per second; the ledger's sums may be corrected downwards, which is no rate.
function rates() {
  const points = [];
  for (let at = 1; at < samples.length; at++) {
    const [before, now] = [samples[at - 1], samples[at]];
    const seconds = (now[0] - before[0]) / 1000;
    if (seconds < 0.9 && at < samples.length - 1) continue;
    points.push([now[0], now.slice(1, 7).map((value, i) => Math.max(0, value - before[i + 1]) / Math.max(seconds, 0.5))]);
  }
  return points;
}

function recent(column) {
  const last = samples[samples.length - 1];
  const first = samples.find(([time]) => time >= last?.[0] - RATE_MS) || last;
  if (!last || first === last) return 0;
  const columns = Array.isArray(column) ? column : [column];
  return columns.reduce((sum, at) => sum + Math.max(0, last[at] - first[at]), 0) / ((last[0] - first[0]) / 1000);
}

export function overview(main) {
  const places = Object.fromEntries(["tiles", "charts", "queues", "workers", "components", "failures", "jobs"].map((name) => [name, h("div", { id: name, class: name })]));
  const section = (title, name, more) => h("section", { class: "card" }, h("h2", {}, title, more || null), places[name]);
  main.append(
    h("h1", { class: "hidden" }, "Overview"), places.tiles, places.charts,
    h("div", { class: "columns" }, section("Failures by code", "failures", link(["dead-letters"], {}, "all")), section("Queues", "queues"), section("Workers", "workers"), section("Components", "components")),
    section("Newest jobs", "jobs", link(["jobs"], {}, "all")),
  );
  const gone = new AbortController();
  let slowAt = 0;
  let failed = -1;

  async function slow(seen) {
    const now = Date.now();
    // Groups read every dead letter: asked for when there are new ones, and not all the time.
    if (now - slowAt < SLOW_MS) return;
    slowAt = now;
    try {
      const page = await get("jobs", { limit: 8 }, gone.signal);
      show(places.jobs, jobTable(page.jobs));
      if (failed !== seen.resources.settled.failed) {
        failed = seen.resources.settled.failed;
        show(places.failures, failures(await get("dlq/groups", { by: "code", limit: 12 }, gone.signal)));
      }
    } catch {
      // The shell says what is wrong.
    }
  }

  return {
    close: () => gone.abort(),
    update(seen) {
      show(places.components, components(seen));
      if (!seen.resources) return;
      show(places.tiles, tiles(seen));
      const points = rates();
      show(
        places.charts,
        chart("Resources settled per second", points.map(([time, values]) => [time, values.slice(0, 5)]), STATES, (value) => `${short(value)}/s`),
        chart("Bytes stored per second", points.map(([time, values]) => [time, [values[5]]]), [["bytes", "bytes"]], (value) => `${bytes(value)}/s`),
        chart("Tasks waiting", samples.map((sample) => [sample[0], [sample[8]]]), [["tasks", "lag"]], (value) => short(value)),
      );
      show(places.queues, queues(seen));
      show(places.workers, workers(seen));
      slow(seen);
    },
  };
}

function tiles(seen) {
  const tile = (name, value, note, kind) => h("div", { class: `tile ${kind || ""}` }, h("span", { class: "name" }, name), h("strong", {}, value), h("span", { class: "note" }, note));
  const tasks = seen.queues.find((queue) => queue.topic === "jobs.tasks");
  const running = seen.workers.reduce((sum, worker) => sum + (worker.running || 0), 0);
  const failing = recent(4);
  return [
    tile("Settled", `${short(recent([1, 2, 3, 4, 5]))}/s`, `${count(seen.resources.accepted - seen.resources.pending)} in all`),
    tile("Stored", `${bytes(recent(6))}/s`, `${bytes(seen.bytes_stored)} in all`),
    tile("Failing", `${short(failing)}/s`, `${count(seen.resources.settled.failed - seen.resources.replayed)} failed now`, failing > 0 ? "bad" : ""),
    tile("Pending", count(seen.resources.pending), `${count(seen.active_jobs)} active job${seen.active_jobs === 1 ? "" : "s"}`),
    tile("Waiting for workers", count(tasks?.lag ?? 0), tasks?.lag ? `oldest ${duration(tasks.oldest_age_seconds)}` : "nothing waits"),
    tile("Downloading", count(running), `${seen.workers.length} worker${seen.workers.length === 1 ? "" : "s"}`, seen.workers.length ? "" : "bad"),
  ];
}

function queues(seen) {
  return table([
    { name: "Topic", of: (queue) => queue.topic },
    { name: "Read by", of: (queue) => queue.group },
    { name: "Lag", right: true, of: (queue) => count(queue.lag) },
    { name: "Oldest", right: true, of: (queue) => (queue.lag ? duration(queue.oldest_age_seconds) : "–") },
  ], seen.queues, { empty: "Not known yet." });
}

function workers(seen) {
  return table([
    { name: "Worker", of: (worker) => worker.name },
    { name: "Host", of: (worker) => worker.host || "–" },
    { name: "Partitions", right: true, of: (worker) => count(worker.partitions) },
    { name: "Downloading", right: true, of: (worker) => count(worker.running) },
    { name: "Holds", right: true, of: (worker) => count(worker.held) },
    { name: "Here for", right: true, of: (worker) => ago(worker.since) },
  ], seen.workers, { empty: "No worker is connected: nothing is downloaded." });
}

function components(seen) {
  return table([
    { name: "Component", of: (row) => row[0].replace("_", " ") },
    { name: "State", of: (row) => h("span", { class: `pill ${row[1].status === "ok" ? "ok" : "bad"}` }, row[1].status) },
    { name: "For", right: true, of: (row) => ago(row[1].since) },
    { name: "Reason", class: "wrap", of: (row) => row[1].reason || "" },
  ], Object.entries(seen.components));
}

function failures(page) {
  const most = Math.max(1, ...page.groups.map((group) => group.count));
  const width = (group) => h("svg:svg", { class: "bar", viewBox: "0 0 100 8", preserveAspectRatio: "none", "aria-hidden": true }, h("svg:rect", { class: "area failed", x: 0, y: 0, width: (group.count / most) * 100, height: 8 }));
  return table([
    { name: "Code", of: (group) => link(["dead-letters"], { code: group.code }, group.code) },
    { name: "", class: "wide", of: width },
    { name: "Dead letters", right: true, of: (group) => count(group.count) },
    { name: "Last", right: true, of: (group) => `${ago(group.newest_at)} ago` },
  ], page.groups, { empty: "No dead letters." });
}

export function jobTable(jobs, empty = "No jobs yet. POST /jobs makes one.") {
  return table([
    { name: "Status", of: (job) => h("span", { class: `pill ${job.status}` }, job.status.replace("_", " ")) },
    { name: "Job", class: "mono", of: (job) => link(["jobs", job.job_id], {}, job.job_id) },
    { name: "Type", of: (job) => job.job_type },
    { name: "Tenant", of: (job) => job.tenant },
    { name: "Resources", class: "wide", of: (job) => bar(job) },
    { name: "Total", right: true, of: (job) => count(job.resource_total) },
    { name: "Failed", right: true, of: (job) => (job.resource_failed ? h("span", { class: "error" }, count(job.resource_failed)) : "0") },
    { name: "Pending", right: true, of: (job) => count(job.resource_pending) },
    { name: "Stored", right: true, of: (job) => bytes(job.bytes_stored) },
    { name: "Age", right: true, of: (job) => h("span", { title: job.created_at }, ago(job.created_at)) },
  ], jobs, { empty, key: (job) => job.job_id });
}
