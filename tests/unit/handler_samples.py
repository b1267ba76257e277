"""Handlers that do well, and handlers that do everything they should not."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

from fetchbox.errors import HandlerError
from fetchbox.handlers import Handler
from fetchbox.manifest import DownloadTask, Manifest, Resource

NEVER = threading.Event()
"""Set by a test at its end, so that no thread is left behind."""


class Doubling(Handler):
    """Async: drops what is tagged, adds one, yields tasks with everything set."""

    async def prepare_manifest(self, manifest: Manifest) -> Manifest:
        manifest.resources = [item for item in manifest.resources if "skip" not in item.tags]
        manifest.resources.append(Resource("https://example.com/added", id="added"))
        return manifest

    async def build_tasks(self, manifest: Manifest) -> AsyncIterator[DownloadTask]:
        for item in manifest.resources:
            await asyncio.sleep(0)
            yield DownloadTask.of(item, headers={"x-job": manifest.job_id}, key_prefix=self.options.get("prefix"))


class Plain(Handler):
    """Sync, a generator, changes the manifest in place."""

    def prepare_manifest(self, manifest: Manifest) -> None:
        manifest.resources.reverse()

    def build_tasks(self, manifest: Manifest) -> Iterator[DownloadTask]:
        for item in manifest.resources:
            yield DownloadTask.of(item)


class Returning(Handler):
    """A coroutine that returns a list, resources among it."""

    async def build_tasks(self, manifest: Manifest) -> list[Any]:
        return list(manifest.resources)


class Refusing(Handler):
    def prepare_manifest(self, manifest: Manifest) -> None:
        raise HandlerError("no gallery in this page", code="HANDLER_NO_GALLERY")


class Failing(Handler):
    async def build_tasks(self, manifest: Manifest) -> AsyncIterator[DownloadTask]:
        if manifest.resources:
            raise ValueError("secret detail")
        yield DownloadTask("")


class TimingOut(Handler):
    async def prepare_manifest(self, manifest: Manifest) -> None:
        raise TimeoutError("its own")


class Exiting(Handler):
    async def prepare_manifest(self, manifest: Manifest) -> None:
        sys.exit(3)


class ExitingInThread(Handler):
    def prepare_manifest(self, manifest: Manifest) -> None:
        sys.exit(3)


class HangingAsync(Handler):
    async def prepare_manifest(self, manifest: Manifest) -> None:
        await asyncio.Event().wait()


class HangingThread(Handler):
    def prepare_manifest(self, manifest: Manifest) -> None:
        NEVER.wait(60)


class BlockingLoop(Handler):
    """Async by name only: it blocks the loop it runs on."""

    async def prepare_manifest(self, manifest: Manifest) -> None:
        NEVER.wait(60)


class HangingConstructor(Handler):
    def __init__(self, options: dict[str, Any]) -> None:
        super().__init__(options)
        NEVER.wait(60)


class Endless(Handler):
    def build_tasks(self, manifest: Manifest) -> Iterator[DownloadTask]:
        while True:
            yield DownloadTask("https://example.com/")


class Empty(Handler):
    def build_tasks(self, manifest: Manifest) -> list[DownloadTask]:
        return []


class WrongItems(Handler):
    def build_tasks(self, manifest: Manifest) -> list[Any]:
        return ["https://example.com/"]


class WrongManifest(Handler):
    def prepare_manifest(self, manifest: Manifest) -> Any:
        return {"resources": []}


class WrongUrl(Handler):
    def build_tasks(self, manifest: Manifest) -> list[DownloadTask]:
        return [DownloadTask("gopher://example.com/")]


class NotJson(Handler):
    def build_tasks(self, manifest: Manifest) -> list[DownloadTask]:
        return [DownloadTask("https://example.com/", metadata={"a": object()})]  # type: ignore[dict-item]


class NamesBucket(Handler):
    def build_tasks(self, manifest: Manifest) -> list[DownloadTask]:
        return [DownloadTask("https://example.com/", bucket=self.options["bucket"])]


class NoHandler:
    """Not a subclass."""
