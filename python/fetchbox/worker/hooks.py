"""The users' code that runs in workers. Nothing of it is imported where nobody has a handler."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fetchbox.config import Config

if TYPE_CHECKING:
    from fetchbox.handler_host import HandlerHost, HandlerSpec


class Hooks:
    """The handlers of a configuration that define a hook of workers, by job type, and the host that runs them. Raises HandlerError when
    one cannot be loaded."""

    def __init__(self, config: Config) -> None:
        self.host: HandlerHost | None = None
        self.before: dict[str, HandlerSpec] = {}
        self.finalize: dict[str, HandlerSpec] = {}
        self.load(config)

    def load(self, config: Config) -> None:
        """Takes the handlers of another configuration; imports what is new. Raises HandlerError; then nothing has changed."""
        if all(kind.handler is None for kind in config.job_types.values()):
            self.before, self.finalize = {}, {}
            return
        from fetchbox.handler_host import HandlerHost, specs_defining

        self.before, self.finalize = specs_defining("before_fetch", config), specs_defining("finalize_job", config)
        if self.host is None:
            self.host = HandlerHost()

    def close(self) -> None:
        """Ends the host."""
        if self.host is not None:
            self.host.close()
