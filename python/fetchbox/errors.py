"""The few kinds of failure that users of FetchBox meet. All are picklable, and each message says what to do."""

from __future__ import annotations

from collections.abc import Sequence

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

Detail = dict[str, str]
"""One fault in a request: `pointer` (RFC 6901), `code`, `message`."""


class FetchboxError(Exception):
    """The base of everything that FetchBox raises on purpose. `code` is stable and meant for programs."""

    code: str = "INTERNAL_ERROR"

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (type(self), self.args, self.__dict__)


def _restore(cls: type[FetchboxError], args: tuple[object, ...], attributes: dict[str, Any]) -> FetchboxError:
    error = cls.__new__(cls, *args)
    error.__dict__.update(attributes)
    return error


class UsageError(FetchboxError):
    """The caller's mistake: a wrong argument, a call in the wrong place."""

    code = "USAGE"


class Problem:
    """One thing that is wrong with the configuration.

    `path` says where, as dotted keys: `server.bind_addr`. `source` is what set it: a file's name, the name of an environment variable, or
    None for a default. No dataclass: to load those takes longer than most commands have until their first line.
    """

    __slots__ = ("message", "path", "source")

    def __init__(self, path: str, message: str, source: str | None = None) -> None:
        self.path = path
        self.message = message
        self.source = source

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Problem) and (self.path, self.message, self.source) == (other.path, other.message, other.source)

    def __hash__(self) -> int:
        return hash((self.path, self.message, self.source))

    def __repr__(self) -> str:
        return f"Problem({self.path!r}, {self.message!r}, {self.source!r})"

    def __str__(self) -> str:
        return f"{self.path}: {self.message}" + (f" (from {self.source})" if self.source else "")


class ConfigError(FetchboxError):
    """The configuration cannot be used. `problems` holds every fault that was found, not only the first."""

    code = "INVALID_CONFIGURATION"

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems: tuple[Problem, ...] = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))

    @classmethod
    def single(cls, path: str, message: str, source: str | None = None) -> ConfigError:
        """The error of one problem."""
        return cls([Problem(path, message, source)])


class Unavailable(FetchboxError):
    """What is asked does not answer at the moment; the same call may succeed later. `retry_after` is in seconds."""

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.retry_after = retry_after


class HubUnavailable(Unavailable):
    """The hub does not answer at the moment."""

    code = "HUB_UNAVAILABLE"

    def __init__(self, message: str = "the hub is away", retry_after: float | None = None) -> None:
        super().__init__(message, retry_after)


class BrokerUnavailable(Unavailable):
    """The broker does not answer at the moment."""

    code = "BROKER_UNAVAILABLE"


class Refused(FetchboxError):
    """The service said no, and why: `code` as in the HTTP table.

    `retry_after` is in seconds, `job_id` names the job that the refusal is about, `details` every fault, `status` the HTTP status if one
    was received.
    """

    def __init__(
        self,
        code: str,
        message: str,
        retry_after: float | None = None,
        job_id: str | None = None,
        details: Sequence[Detail] | None = None,
        status: int | None = None,
    ) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message
        self.retry_after = retry_after
        self.job_id = job_id
        self.details: list[Detail] | None = list(details) if details is not None else None
        self.status = status


class HandlerError(FetchboxError):
    """Raised by a handler: the job is refused with this code, or the task goes to the dead letters. `code` begins with `HANDLER_`."""

    code = "HANDLER_ERROR"

    def __init__(self, message: str = "the handler refused the job", code: str = "HANDLER_ERROR") -> None:
        if not code.startswith("HANDLER_"):
            raise UsageError(f"a handler's code begins with HANDLER_, not {code!r}")
        super().__init__(message)
        self.message = message
        self.code = code


class StoreError(FetchboxError):
    """The object store cannot be used at all: wrong credentials, no such bucket, a read-only directory."""

    code = "STORAGE_UNAVAILABLE"


class ServiceUnavailable(FetchboxError):
    """No service answers at this address."""

    code = "SERVICE_UNAVAILABLE"


class ProcessError(FetchboxError):
    """A process of the service cannot start or has failed for good."""

    code = "SYSTEM_PROCESS"
