"""The oracle over a bucket in place of a directory."""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

import obstore
from obstore.store import S3Store

from tests.process.client import Client
from tests.process.load import Load, Wanted
from tests.process.oracle import Oracle
from tests.process.origins import Journal
from tests.process.s3 import BUCKET, S3
from tests.process.waiting import wait_for

PREFIX: Final = "some/prefix"
READERS: Final = 8
"""Objects that are read at once."""


class BucketOracle(Oracle):
    """Looks into the bucket with a client of its own."""

    def __init__(self, client: Client, server: S3, journal: Journal) -> None:
        super().__init__(client, Path("/nonexistent"), journal)
        self._server = server
        settings = server.settings()
        self._bucket = S3Store(
            BUCKET,
            endpoint=settings["endpoint"],
            region=settings["region"],
            access_key_id=settings["access_key_id"],
            secret_access_key=settings["secret_access_key"],
            client_options={"allow_http": True},
        )

    def _path(self, url: str) -> str:
        parts = urlsplit(url)
        assert (parts.scheme, parts.netloc) == ("s3", BUCKET), f"not in the bucket: {url}"
        path = unquote(parts.path).removeprefix("/")
        assert path.startswith(PREFIX + "/"), f"outside the prefix: {url}"
        return path

    def _check_files(self, objects: dict[str, Wanted], manifests: dict[str, Load], limit: float) -> None:
        wanted = set(objects) | set(manifests)

        def difference() -> list[str]:
            there = {meta["path"] for batch in obstore.list(self._bucket) for meta in batch}
            return [f"left over: {p}" for p in sorted(there - wanted)] + [f"missing: {p}" for p in sorted(wanted - there)]

        wait_for(
            "the bucket to hold the objects, the manifests and nothing else",
            lambda: not difference(),
            limit,
            every=0.5,
            describe=lambda: "\n".join(difference()[:20]),
        )
        wait_for("the collector to abort what crashes left", lambda: not self._server.uploads(), limit, every=0.5)
        with ThreadPoolExecutor(READERS) as pool:
            for (path, resource), found in zip(objects.items(), pool.map(self._digest, objects), strict=True):
                assert found == (resource.size, resource.sha256), f"{path} holds {found}; its URL gives {resource}"
        for path, load in manifests.items():
            assert json.loads(self._read(path)) == json.loads(load.body), f"{path} is not the manifest that was posted as {load.key}"

    def _digest(self, path: str) -> tuple[int, str]:
        body = self._read(path)
        return len(body), hashlib.sha256(body).hexdigest()

    def _read(self, path: str) -> bytes:
        return bytes(obstore.get(self._bucket, path).bytes())
