"""The ingress and the operator's API: Starlette on Granian, one event loop a process."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fetchbox.api.app import create_app

if TYPE_CHECKING:
    from fetchbox.config import Config
    from fetchbox.control import Control

__all__ = ["create_app", "run"]


async def run(config: Config, control: Control) -> int:
    """Serves until the process is drained; the exit code."""
    from fetchbox.api.serve import serve

    return await serve(config, control)
