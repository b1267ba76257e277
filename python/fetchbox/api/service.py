"""What every endpoint shares."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from fetchbox.api.handler_host import HandlerHost
from fetchbox.api.metrics import Metrics
from fetchbox.api.settings import Settings
from fetchbox.api.types import Core, Hub
from fetchbox.api.watch import Watch


@dataclass
class Service:
    """The api process's state: little, and none that a crash may not lose. `settings` is replaced as a whole when the configuration is
    read again."""

    settings: Settings
    hub: Hub
    core: Core
    clock: Callable[[], float]
    """Seconds since 1970."""
    new_id: Callable[[], str]
    metrics: Metrics = field(default_factory=Metrics)
    handlers: HandlerHost = field(default_factory=HandlerHost)
    draining: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when streams have to end because the process is to end."""

    def __post_init__(self) -> None:
        self.watch = Watch(self.clock)
