"""Handlers: a job type's own code, at ingest and in the workers.

`prepare_manifest` and `build_tasks` run in the api, once per accepted job; `before_fetch` and `finalize_job` run in workers and only if
the class defines them.
"""

from __future__ import annotations

import importlib
from collections.abc import AsyncIterable, Awaitable, Iterable
from importlib.metadata import entry_points
from typing import Any

from fetchbox.errors import HandlerError
from fetchbox.manifest import DownloadTask, Manifest, Resource

__all__ = ["ENTRY_POINT_GROUP", "Handler", "HandlerError", "create_handler", "defines", "load_handler"]

ENTRY_POINT_GROUP = "fetchbox.handlers"

Tasks = Iterable[DownloadTask] | AsyncIterable[DownloadTask]


class Handler:
    """The base of all handlers; as it stands it passes the manifest through.

    Every method may be sync or async. Sync ones run in a thread, async ones on an event loop of their own, so that neither can stop the
    api. A subclass may also
    define, for the workers:

    - `before_fetch(self, task)`: called just before a task is fetched; may change its headers, e.g. for a fresh signature;
    - `finalize_job(self, summary)`: called at least once when the job is settled.
    """

    def __init__(self, options: dict[str, Any]) -> None:
        self.options = options

    def prepare_manifest(self, manifest: Manifest) -> Manifest | Awaitable[Manifest | None] | None:
        """Checks, reorders, drops or adds resources. None means that `manifest` itself was changed. Raises HandlerError to refuse the
        job."""
        return manifest

    def build_tasks(self, manifest: Manifest) -> Tasks | Awaitable[Tasks]:
        """The tasks of the job, usually as a generator. Raises HandlerError to refuse the job."""
        return [DownloadTask.of(resource) for resource in manifest.resources]


def load_handler(spec: str) -> type[Handler]:
    """The class that a job type's `handler` names: `package.module:Class` or the name of an entry point in `fetchbox.handlers`.

    Raises HandlerError (HANDLER_ERROR) that says what is missing.
    """
    target: Any
    try:
        if ":" in spec:
            module, _, path = spec.partition(":")
            target = importlib.import_module(module)
            for part in path.split("."):
                target = getattr(target, part)
        else:
            found = tuple(entry_points(group=ENTRY_POINT_GROUP, name=spec))
            if not found:
                known = ", ".join(sorted(point.name for point in entry_points(group=ENTRY_POINT_GROUP))) or "none"
                raise HandlerError(
                    f"handler {spec!r} is neither package.module:Class nor an entry point of {ENTRY_POINT_GROUP} (known: {known})",
                    code="HANDLER_ERROR",
                )
            target = found[0].load()
    except HandlerError:
        raise
    except Exception as error:  # importing runs the user's code: anything may come out of it
        raise HandlerError(f"handler {spec!r} cannot be imported: {type(error).__name__}: {error}", code="HANDLER_ERROR") from error
    if not (isinstance(target, type) and issubclass(target, Handler)):
        raise HandlerError(f"handler {spec!r} is not a subclass of fetchbox.Handler", code="HANDLER_ERROR")
    return target


def create_handler(spec: str, options: dict[str, Any]) -> Handler:
    """An instance of the handler with a copy of its options. Raises HandlerError when it cannot be made."""
    handler = load_handler(spec)
    try:
        return handler(dict(options))
    except HandlerError:
        raise
    except Exception as error:
        raise HandlerError(f"handler {spec!r} cannot be created: {type(error).__name__}", code="HANDLER_ERROR") from error


def defines(handler: Handler | type[Handler], hook: str) -> bool:
    """Whether the class defines a worker hook: "before_fetch" or "finalize_job"."""
    return callable(getattr(handler, hook, None))


def as_task(item: object) -> DownloadTask:
    """What `build_tasks` yielded, as a task. Raises HandlerError for anything but a DownloadTask or a Resource."""
    if isinstance(item, DownloadTask):
        return item
    if isinstance(item, Resource):
        return DownloadTask.of(item)
    raise HandlerError(f"build_tasks yielded a {type(item).__name__}, not a fetchbox.DownloadTask", code="HANDLER_BAD_TASK")
