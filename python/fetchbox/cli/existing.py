"""What is stored already, so that the same command goes on where it was interrupted."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote, urlsplit

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

Found = tuple[int, str]
"""Size in bytes and URL of an object that is there already."""


def existing(out: str, tree: dict[str, Any]) -> Callable[[str], Found | None] | None:
    """Looks up whether an object is stored; None when nothing is. Objects appear whole or not at all, so one that is there is complete."""
    parts = urlsplit(out) if "://" in out else None
    if parts is None or parts.scheme == "file":
        root = Path(out if parts is None else unquote(parts.path)).resolve()
        empty = not root.is_dir() or next(root.iterdir(), None) is None
        return None if empty else LocalIndex(root)
    return RemoteIndex(out, tree)


class LocalIndex:
    """Looks into a directory, a file at a time."""

    def __init__(self, root: Path) -> None:
        self._root = str(root)
        self._url = root.as_uri()

    def __call__(self, key: str) -> Found | None:
        try:
            return os.stat(f"{self._root}/{key}").st_size, f"{self._url}/{key}"
        except (OSError, ValueError):
            return None


class RemoteIndex:
    """The sizes of all objects below the prefix, listed once: a request for a thousand objects instead of one for each."""

    def __init__(self, out: str, tree: dict[str, Any]) -> None:
        import obstore
        from obstore.store import from_url

        from fetchbox.api.configure import store_options
        from fetchbox.config import load_library
        from fetchbox.errors import StoreError

        self._url = out.rstrip("/")
        self._sizes: dict[str, int] = {}
        config = load_library(config={**tree, "storage": {**tree.get("storage", {}), "url": out}})
        try:
            for batch in obstore.list(from_url(out, **store_options(config))):
                self._sizes.update((entry["path"], entry["size"]) for entry in batch)
        except Exception as error:
            # The rest of its text is for those who debug the store's client.
            why = str(error).partition("\n")[0].partition(" Debug source")[0].strip()
            raise StoreError(f"{out} cannot be listed: {why}; --overwrite does without") from error

    def __call__(self, key: str) -> Found | None:
        size = self._sizes.get(key)
        return None if size is None else (size, f"{self._url}/{key}")
