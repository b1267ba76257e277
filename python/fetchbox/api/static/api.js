// What the page asks of the service. Paths are relative, so that a proxy may put the service anywhere.

export class Failed extends Error {
  constructor(status, code, message, details) {
    super(message);
    Object.assign(this, { status, code, details: details || [] });
  }
}

const LIMIT_MS = 20_000;
let onLoggedOut = () => {};
export const whenLoggedOut = (callback) => (onLoggedOut = callback);

export async function ask(method, path, { params, body, signal, accept = [] } = {}) {
  const query = new URLSearchParams(Object.entries(params || {}).filter(([, value]) => value !== null && value !== undefined && value !== "")).toString();
  const limit = AbortSignal.timeout(LIMIT_MS);
  let response;
  try {
    response = await fetch(`operators/${path}${query ? `?${query}` : ""}`, {
      method,
      credentials: "same-origin",
      cache: "no-store",
      signal: signal ? AbortSignal.any([signal, limit]) : limit,
      ...(body === undefined ? {} : { headers: { "content-type": "application/json" }, body: JSON.stringify(body) }),
    });
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new Failed(0, "UNREACHABLE", "the service does not answer");
  }
  const text = await response.text();
  let answer = null;
  try {
    answer = text ? JSON.parse(text) : null;
  } catch {
    throw new Failed(response.status, "NO_JSON", `the answer is not what was expected (HTTP ${response.status})`);
  }
  if (response.ok || accept.includes(response.status)) return answer;
  if (response.status === 401 && path !== "session") onLoggedOut();
  const error = answer?.error || {};
  throw new Failed(response.status, error.code || `HTTP ${response.status}`, error.message || "", error.details);
}

export const get = (path, params, signal) => ask("GET", path, { params, signal });
export const jobPath = (id, rest = "") => `jobs/${encodeURIComponent(id)}${rest}`;

export function said(error) {
  const details = (error.details || []).map((detail) => `${detail.pointer ? `${detail.pointer}: ` : ""}${detail.message}`);
  return [error.code ? `${error.message} (${error.code})` : String(error), ...details].join("\n");
}
