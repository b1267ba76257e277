"""FetchBox: post a manifest of URLs, get verified objects in a store and an account of every single one.

The public names are loaded when they are first used, so that `import fetchbox` costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module

TYPE_CHECKING = False
if TYPE_CHECKING:
    # `typing` itself takes as long to load as everything else here.
    from typing import Any

    from fetchbox._core import Outcome
    from fetchbox.client import AsyncClient, Client
    from fetchbox.errors import (
        ConfigError,
        FetchboxError,
        HandlerError,
        HubUnavailable,
        Refused,
        ServiceUnavailable,
        StoreError,
        UsageError,
    )
    from fetchbox.handlers import Handler
    from fetchbox.library import NOT_YET, Engine, afetch, fetch
    from fetchbox.manifest import DownloadTask, Manifest, Resource

_HOMES = {
    "AsyncClient": "client",
    "Client": "client",
    "ConfigError": "errors",
    "DownloadTask": "manifest",
    "Engine": "library",
    "FetchboxError": "errors",
    "Handler": "handlers",
    "HandlerError": "errors",
    "HubUnavailable": "errors",
    "Manifest": "manifest",
    "NOT_YET": "library",
    "Outcome": "_core",
    "Refused": "errors",
    "Resource": "manifest",
    "ServiceUnavailable": "errors",
    "StoreError": "errors",
    "UsageError": "errors",
    "afetch": "library",
    "fetch": "library",
}

__all__ = [
    "NOT_YET",
    "AsyncClient",
    "Client",
    "ConfigError",
    "DownloadTask",
    "Engine",
    "FetchboxError",
    "Handler",
    "HandlerError",
    "HubUnavailable",
    "Manifest",
    "Outcome",
    "Refused",
    "Resource",
    "ServiceUnavailable",
    "StoreError",
    "UsageError",
    "__version__",
    "afetch",
    "fetch",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        value: Any = version("fetchbox")
    elif (home := _HOMES.get(name)) is not None:
        value = getattr(import_module(f"fetchbox.{home}"), name)
    else:
        raise AttributeError(f"module 'fetchbox' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
