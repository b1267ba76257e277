"""What the ingress counts. Labels never hold a job, a URL or a host."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics, generate_latest

# A second series per counter with the time of its first use would double what every scrape carries, and nobody reads it.
disable_created_metrics()  # type: ignore[no-untyped-call]

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class Metrics:
    """The counters of one api process, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry(auto_describe=True)
        self._requests = Counter(
            "fetchbox_api_requests_total", "HTTP requests answered", ("method", "code", "route"), registry=self.registry
        )
        self._jobs = Counter("fetchbox_ingest_jobs_total", "Posted jobs by what became of them", ("result",), registry=self.registry)
        self._bytes = Counter("fetchbox_ingest_bytes_total", "Bytes of accepted manifests, decompressed", registry=self.registry)
        self._duration = Histogram(
            "fetchbox_ingest_duration_seconds",
            "Time to answer a posted job",
            buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
            registry=self.registry,
        )
        # `labels()` takes a lock and builds tuples; the few children there are get looked up by a plain key.
        self._request_children: dict[tuple[str, int, str], Counter] = {}
        self._job_children: dict[str, Counter] = {}

    def request(self, method: str, status: int, route: str) -> None:
        """Counts an answer. `route` is a path template, never a path."""
        if method not in _METHODS:
            method = "OTHER"
        key = (method, status, route)
        child = self._request_children.get(key)
        if child is None:
            child = self._request_children[key] = self._requests.labels(method, str(status), route)
        child.inc()

    def job(self, result: str, seconds: float) -> None:
        """Counts a posted job: "accepted", "duplicate" or the lower-case code of its refusal."""
        child = self._job_children.get(result)
        if child is None:
            child = self._job_children[result] = self._jobs.labels(result)
        child.inc()
        self._duration.observe(seconds)

    def accepted(self, size: int) -> None:
        """Counts what a new job brought. Its resources are counted by the hub, which knows them across restarts."""
        self._bytes.inc(size)

    def render(self) -> str:
        """The registry as Prometheus text."""
        return generate_latest(self.registry).decode()
