"""The native module: everything that touches bytes, sockets or the database.

Calls that talk to the hub return a token at once; their results come out of `drain()` after the descriptor of `fileno()` has turned
readable.
`fetchbox._completions` turns tokens into awaitables. JSON goes in and out as UTF-8 bytes. No object here survives `fork`.
"""

from collections.abc import Callable
from typing import Any, final

__all__ = [
    "CoreError",
    "CurlCall",
    "Delivery",
    "Engine",
    "Follower",
    "Hub",
    "HubClient",
    "Outcome",
    "OutcomeBatch",
    "Report",
    "Settled",
    "TaskBatch",
    "__version__",
    "check_replay",
    "compile_manifest",
    "compile_tasks",
    "failure_codes",
    "fetch_defaults",
    "key_template_problem",
    "object_key",
    "outcome_from_json",
    "parse_manifest",
    "partition_tasks",
    "refused_address",
]

__version__: str

class CoreError(Exception):
    """The one exception of the native module.

    `kind` is "unavailable" (the hub is away: try again), "refused" (it said no: `code` and `message` say why), "validation" (`details`
    names every fault),
    "config", "store", "closed" or "internal". `retry_after` is in seconds.
    """

    kind: str
    code: str
    message: str
    details: list[dict[str, str]] | None
    retry_after: float | None
    job_id: str | None
    def __init__(
        self,
        kind: str,
        code: str,
        message: str,
        details: list[dict[str, str]] | None = None,
        retry_after: float | None = None,
        job_id: str | None = None,
    ) -> None: ...

def compile_manifest(body: bytes, context: bytes) -> TaskBatch:
    """Validates a manifest and encodes a task per resource.

    `context` is JSON: job_id, job_type, tenant, manifest_key, trace_id, traceparent, partitions, partition_by, limits and hints. Raises
    CoreError("validation") with all faults.
    """

def parse_manifest(body: bytes, context: bytes) -> bytes:
    """Validates a manifest and returns it as normalised JSON for handlers. Raises like `compile_manifest`."""

def compile_tasks(tasks: bytes, context: bytes) -> TaskBatch:
    """Validates and encodes the tasks that a handler built, a JSON list. Raises like `compile_manifest`."""

def check_replay(order: bytes, limits: bytes) -> None:
    """Checks the changes of a replay, a JSON object with `headers`, `proxy_pool` and `url_replace`. Raises CoreError("validation") with all
    faults."""

def key_template_problem(template: str) -> str | None:
    """What is wrong with a `key_template`, or None."""

def object_key(url: bytes, id: bytes | None) -> str:
    """The name of an object that the library stores; `fetchbox.keys` says more."""

def failure_codes() -> list[tuple[str, bool, str]]:
    """Every failure code: its name, whether it is retried, what it means."""

def partition_tasks(tasks: list[bytes], partitions: int, by_host: bool) -> list[int]:
    """The partition of each encoded task out of so many, as `compile_manifest` would choose it."""

def fetch_defaults() -> bytes:
    """The engine's own defaults of `[fetch]`, as JSON."""

@final
class TaskBatch:
    """Encoded tasks by partition, ready for the hub; opaque."""

    def __len__(self) -> int: ...
    def facts(self) -> bytes:
        """What the manifest says of its job, as JSON: crawl_id, priority, callback_url, callback_events, deadline_ms."""

@final
class Delivery:
    """What one poll brought: batches, and the assignment when it changed; opaque."""

    def __len__(self) -> int: ...
    @staticmethod
    def of(polled: list[tuple[int, int, list[bytes]]]) -> Delivery:
        """Encoded tasks that another broker brought: partition, offset of the first, messages without a gap."""

@final
class Settled:
    """What is settled already of the jobs of a delivery; opaque."""

    @staticmethod
    def unknown() -> Settled:
        """Nobody could be asked: everything is worked on, and what was settled already is not counted again."""

@final
class Report:
    """What a worker publishes in one durable step: logs, dead letters, retries, status and the offsets they allow to commit."""

    def __len__(self) -> int: ...
    def messages(self) -> list[tuple[str, int, list[bytes]]]:
        """Topic, partition and encoded messages, in the order in which they are to be published."""
    def commits(self) -> list[tuple[int, int]]:
        """Per partition of jobs.tasks the offset below which everything is settled or handed on, once all of this is published."""

@final
class OutcomeBatch:
    """Finished tasks in completion order."""

    def __len__(self) -> int: ...
    def outcomes(self) -> list[Outcome]:
        """One object per finished task; the service never asks for them."""
    def stored(self) -> tuple[int, int]:
        """How many of them are stored, and their bytes."""
    def unstored(self) -> list[Outcome]:
        """Objects for those that are not stored."""
    def sampled(self) -> list[tuple[str, str, str, int, Outcome]]:
        """Settled tasks whose trace context says that they are recorded: traceparent, job, job type, time (milliseconds since 1970)."""
    def remembered(self) -> list[tuple[bytes, bytes]]:
        """What to remember for the next run with `reuse`: name and value."""
    def encode(self) -> list[tuple[int, bytes]]:
        """Place and bytes of each, for `decode` in another process."""
    @staticmethod
    def decode(finished: bytes) -> OutcomeBatch:
        """The one finished task that `encode` wrote."""

@final
class Outcome:
    """What became of one URL. Read-only and picklable."""

    id: str
    index: int
    url: str
    final_url: str
    state: str
    code: str | None
    message: str | None
    http_status: int | None
    size: int
    sha256: str | None
    content_type: str | None
    sniffed_type: str | None
    storage_url: str | None
    etag: str | None
    last_modified: str | None
    attempts: int
    proxy: str | None
    timings: dict[str, int]
    generation: int
    def as_dict(self) -> dict[str, Any]: ...
    def to_json(self) -> bytes: ...
    def __reduce__(self) -> tuple[Callable[[bytes], Outcome], tuple[bytes]]: ...

def outcome_from_json(data: bytes) -> Outcome:
    """The outcome that `Outcome.to_json` wrote; pickling uses it."""

def refused_address(addresses: list[str], allow_networks: list[str], blocked: list[str]) -> str | None:
    """Which of these addresses ("ip:port") the address policy refuses, and why; None when all may be connected to.

    Raises CoreError("internal") for a text that is no address or network.
    """

@final
class Follower:
    """A member of a consumer group on a topic other than the tasks."""

    def __new__(cls, topic: str, group: str, member: str) -> Follower: ...
    def partitions(self) -> list[int]:
        """Those that it reads at the moment."""
    def positions(self) -> list[tuple[int, int]]:
        """Those, with the offset that it reads next."""
    def take(self, polled: list[tuple[int, int, list[bytes]]]) -> list[tuple[int, int, str, list[tuple[int, int]]]]:
        """Moves on behind messages that another broker brought; what `HubClient.read` tells of them."""

@final
class HubClient:
    """A connection to the hub that reconnects by itself until it is closed."""

    def __new__(cls, options: bytes) -> HubClient:
        """`options` is JSON: url ("unix:///path"), name, role ("api", "worker" or "operator"), token. Connects in the background."""
    def fileno(self) -> int: ...
    def drain(self) -> list[tuple[int, Any]]:
        """Finished calls as (token, result or CoreError); token 0 is a push: ("cancelled", job_id), ("trouble", why there is no
        connection, each reason once), ("connected", "") or ("disconnected",
        "")."""
    def set_token(self, token: str | None) -> None:
        """Shows this token from the next connection on."""
    def connected(self) -> bool: ...
    def trouble(self) -> str:
        """Why it is not connected, in a sentence; empty while it is."""
    def reserve(self, request: bytes) -> int: ...
    def release(self, request: bytes) -> int: ...
    def accept(self, facts: bytes, tasks: TaskBatch, manifest: bytes | None) -> int: ...
    def rebuild(self, facts: bytes, tasks: TaskBatch, digests: bool) -> int:
        """Makes a job that the ledger does not know; -> dict: created, stored, pending."""
    def cancel(self, job_id: str, tenant: str | None) -> int: ...
    def query(self, name: str, params: bytes) -> int: ...
    def ledger(self, name: str, params: bytes) -> int: ...
    def join(self, engine: Engine, member: str) -> int: ...
    def leave(self) -> int: ...
    def poll(self, engine: Engine, max_messages: int, wait_ms: int) -> int: ...
    def settled(self, delivery: Delivery) -> int: ...
    def append(self, report: Report) -> int: ...
    def follow(self, follower: Follower) -> int: ...
    def read(self, follower: Follower, max_messages: int, wait_ms: int) -> int:
        """Comes to a list of (partition, offset behind the message, job id, index and generation of each resource that it says to have
        failed)."""
    def commit(self, follower: Follower, offsets: list[tuple[int, int]]) -> int: ...
    def release_partitions(self, engine: Engine) -> int: ...
    def watch(self, engine: Engine, wait_ms: int) -> int:
        """Comes to None when the engine's partitions have changed (it has them already) or the time is over."""
    def commit_tasks(self, offsets: list[tuple[int, int]]) -> int: ...
    def outbox(self, after: int, max_bytes: int, wait_ms: int) -> int:
        """Comes to what waits to be published to another broker: sequence and its (topic, partition, messages), in order."""
    def outbox_done(self, up_to: int) -> int: ...
    def feed(self, topic: str, partition: int, base_offset: int, messages: list[bytes]) -> int:
        """What was read from another broker: outcomes are projected, lines kept, and how far it was read."""
    def close(self) -> None: ...

@final
class CurlCall:
    """One request that the engine wants curl to make. It is told the head, the body by pieces and the end."""

    @property
    def group(self) -> int:
        """Calls of one group may share connections."""
    def order(self) -> bytes:
        """What to do, as JSON; holds credentials."""
    def permits(self, ip: str, port: int) -> bool:
        """Whether a socket to this address may be opened."""
    def connected(self) -> None:
        """There is a connection, and the request is about to be made."""
    def head(self, status: int, http2: bool, fields: list[tuple[bytes, bytes]]) -> None:
        """The answer's head."""
    def push(self, data: bytes) -> int:
        """0: the piece was taken. 1: not now, offer it again when told to. 2: nobody wants it any more."""
    def end(self, code: str | None = None, message: str = "") -> None:
        """It is over: well, or with a failure's code."""

@final
class Engine:
    """The download engine and the window over the partitions it works on."""

    def __new__(cls, options: bytes, store: Any | None = None, log_stored: bool = False, idle: bool = False) -> Engine:
        """`options` is the engine's configuration as JSON, `store` an obstore store; `log_stored` puts stored resources into the job's log
        as well. An `idle` one downloads nothing and says of every task at once that it is stored: for benches of all the rest.

        Raises CoreError("config" or "store").
        """
    def fileno(self) -> int: ...
    def admit(self, delivery: Delivery) -> int:
        """Takes a delivery into the window; returns how many tasks are new."""
    def submit(self, delivery: Delivery, settled: Settled) -> int:
        """Starts the tasks of an admitted delivery that are not settled yet; returns how many.

        Those that were under way in several deaths of workers are set aside instead.
        """
    def set_aside(self) -> list[tuple[int, bytes]]:
        """Takes what `submit` set aside: place and encoded task of each. Each must be settled by its place, or is delivered again."""
    def hook(self, job_types: set[str], limits: bytes) -> None:
        """From now on `submit` holds tasks of these job types back; they count in `backlog`. `limits` is JSON: max_headers,
        max_header_bytes."""
    def take_hooked(self) -> list[tuple[int, str, bytes]]:
        """What was held back since the last call: place, job type and the task as JSON with the fields of `fetchbox.DownloadTask`."""
    def release_hooked(self, place: int, headers: bytes) -> None:
        """Lets a task go on that was held back. `headers` is a JSON object: what to change, null for what to take away.

        Headers that cannot be sent fail the task as HANDLER_BAD_TASK; a suspect is set aside.
        """
    def refuse_hooked(self, place: int, code: str, message: str) -> None:
        """Counts a failed attempt of a task that was held back: it is tried again later or fails, as the code says."""
    def serve_curl(self) -> int:
        """From now on this process works at what job types with transport = "curl" ask for; a descriptor that is readable while there is
        news. Without it their tasks fail."""
    def curl_news(self) -> list[tuple[int, int, CurlCall | None]]:
        """What is new: a number and 0 with a call to begin with, 1 when a call's body may come on, 2 when nobody listens to it any more."""
    def submit_apart(self, place: int, task: bytes) -> int:
        """Starts a task that another process set aside."""
    def poison(self, place: int, task: bytes, message: str) -> OutcomeBatch:
        """The failed outcome of a task that killed its process while it ran alone, to be settled like any other."""
    def unguarded(self) -> str | None:
        """Why a crash would leave no trace of what was under way although `flight_dir` was given; None when it would."""
    def has_room(self) -> bool:
        """Whether an eighth of the slots or more stands free: what waits, waits for its host or its time."""
    def submit_tasks(self, tasks: bytes, first_index: int, named: bool) -> int:
        """Starts tasks of a library call, a JSON list of URLs and {url, id, headers, tags, key, …}; returns how many.

        Their index counts from `first_index`. With `named` a task without a key is named by `object_key`.
        """
    def submit_urls(self, urls: list[str], first_index: int, named: bool) -> int:
        """The same for bare URLs. UnicodeEncodeError, and nothing is started, when one of them holds surrogates."""
    def prepare_tasks(self, tasks: bytes, first_index: int, named: bool) -> list[bytes | None]:
        """The first half of `submit_tasks`, with `reuse`: the names under which something may be remembered of each, or None."""
    def submit_prepared(self, known: dict[bytes, tuple[bytes, int]]) -> int:
        """The second half: by name what is remembered, and for how many milliseconds. Returns how many were started."""
    def drain(self, limit: int) -> OutcomeBatch: ...
    def settle(self, outcomes: OutcomeBatch) -> Report:
        """Counts finished tasks as settled or handed on and says what to publish and commit for them. Publish every report, in order, until
        the hub has it."""
    def positions(self) -> list[tuple[int, int]]:
        """Partitions that have room, with the offset that is to be polled next."""
    def unload(self) -> None:
        """Forgets the assignment: after this worker lost its place in the group."""
    def to_release(self) -> int:
        """How many partitions wait to be given up, with nothing of them in flight."""
    def backlog(self) -> int:
        """Tasks submitted and not drained yet."""
    def standing(self) -> tuple[int, list[str]]:
        """Downloads under way, and the names of the proxy pools of which no endpoint works at the moment."""
    def cancel(self, job_id: str) -> None: ...
    def reload(self, options: bytes) -> None:
        """Takes job types, proxy pools and the store's credentials from other options, for every attempt that begins from now on.

        Raises CoreError("config" or "store"); then all is as before.
        """
    def begin_close(self) -> None: ...
    def close(self, timeout: float) -> None: ...
    def metrics(self) -> str: ...

@final
class Hub:
    """The database and its server; one a process."""

    def __new__(cls, options: bytes, storage: bytes | None = None) -> Hub:
        """Opens or creates the database and starts serving at once; `options` is JSON, `storage` too: how to reach a store that is not
        local. Raises CoreError("config" or "store") that says what to do."""
    def reload(self, options: bytes, storage: bytes | None = None) -> None:
        """Takes the token and what job types say of the store from other options, and the store's credentials from `storage`; connections
        that are up stay. Raises CoreError("config"); then nothing has changed."""
    def metrics(self) -> str: ...
    def close(self) -> None:
        """Stops taking calls, commits what is queued and closes the database."""
