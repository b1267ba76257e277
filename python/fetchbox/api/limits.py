"""What a tenant may post, and how a refusal tells it (RateLimit and RateLimit-Policy, as the IETF's httpapi group drafts them).

The hub counts, so that the limits hold for all api processes together.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fetchbox.api.problems import Problem
from fetchbox.config import Config
from fetchbox.errors import Refused

DAY = 86_400
POLICY_OF_CODE = {"RATE_LIMITED": "jobs", "RATE_LIMITED_RESOURCES": "resources", "RATE_LIMITED_BYTES": "bytes"}
"""The limit that the hub's refusal speaks of; to clients all of them are RATE_LIMITED."""


@dataclass(frozen=True, slots=True)
class Limits:
    """One tenant's limits, as the hub takes them: token buckets (`per_second` and `burst`, None for none), and bytes stored a day (0 for
    none)."""

    jobs: Mapping[str, float] | None = None
    resources: Mapping[str, float] | None = None
    daily_bytes: int = 0

    def facts(self) -> dict[str, Any]:
        """For the hub, to be checked."""
        return {"rate_limit": self.jobs, "resource_limit": self.resources, "daily_bytes": self.daily_bytes}

    def policies(self) -> str:
        """The value of RateLimit-Policy."""
        told = [f'"{name}";q={quota};w={window}' for name, (quota, window) in self._quotas().items()]
        if self.daily_bytes:
            told.append(f'"bytes";q={self.daily_bytes};w={DAY};qu="content-bytes"')
        return ", ".join(told)

    def refused(self, error: Refused) -> Problem | None:
        """The answer to a tenant that is beyond a limit; None for another refusal."""
        name = POLICY_OF_CODE.get(error.code)
        if name is None:
            return None
        wait = max(1, math.ceil(error.retry_after or 1))
        headers = {"ratelimit-policy": self.policies(), "ratelimit": f'"{name}";r=0;t={wait}'}
        return Problem(429, "RATE_LIMITED", error.message, retry_after=wait, headers=headers)

    def _quotas(self) -> dict[str, tuple[int, int]]:
        """Whole numbers of things and of seconds, as the headers want them."""
        rates = {"jobs": self.jobs, "resources": self.resources}
        per_second = {name: bucket["per_second"] for name, bucket in rates.items() if bucket is not None}
        return {name: (round(rate), 1) if rate >= 1 else (1, math.ceil(1 / rate)) for name, rate in per_second.items()}


NO_LIMITS = Limits()


def limits_of(config: Config) -> tuple[Limits, dict[str, Limits]]:
    """Everybody's limits, and those of tenants that have their own."""
    server = config.server

    def made(jobs: float | None, resources: float | None, daily_bytes: int | None) -> Limits:
        resources = server.resource_rate_limit if resources is None else resources
        return Limits(
            jobs=_bucket(server.rate_limit if jobs is None else jobs, 1),
            # A manifest of the largest size must pass some time.
            resources=_bucket(resources, server.max_resources),
            daily_bytes=server.daily_bytes if daily_bytes is None else daily_bytes,
        )

    own = {name: made(tenant.rate_limit, tenant.resource_rate_limit, tenant.daily_bytes) for name, tenant in config.tenants.items()}
    return made(None, None, None), own


def _bucket(per_second: float, at_least: int) -> dict[str, float] | None:
    """A token bucket of one second's worth; None for no limit."""
    return None if per_second <= 0 else {"per_second": per_second, "burst": max(at_least, math.ceil(per_second))}
