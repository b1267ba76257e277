"""The part of the configuration that requests need, ready to use; replaced as a whole on reload."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fetchbox.api.auth import DEFAULT_TENANT, OperatorToken, TenantTokens, tenant_header
from fetchbox.api.limits import NO_LIMITS, Limits
from fetchbox.api.manifests import Manifests
from fetchbox.api.problems import Problem
from fetchbox.api.session import check_origin, cookie_value
from fetchbox.handler_host import HandlerSpec

DEFAULT_JOB_TYPE = "default"


@dataclass(frozen=True)
class JobType:
    """A job type: its handler, and what the compiler has to know of it."""

    name: str
    handler: HandlerSpec | None = None
    tenants: frozenset[str] | None = None
    """Who may post jobs of it; None for all."""
    context: Mapping[str, Any] = field(default_factory=dict)
    """The part of the compile context that is the same for all jobs of this type."""


@dataclass(frozen=True)
class Settings:
    """Limits, tokens and job types."""

    manifests: Manifests
    job_types: Mapping[str, JobType]
    tokens: TenantTokens = field(default_factory=lambda: TenantTokens({}))
    operator: OperatorToken = field(default_factory=lambda: OperatorToken(None))
    open_ingest: bool = False
    """Whether anyone may post while no `api_tokens` are configured."""
    open_operators: bool = False
    """Whether anyone is an operator while no `operator_token` is configured: bound to loopback, or `allow_anonymous`."""
    max_manifest_bytes: int = 5_000_000
    max_resources: int = 1000
    limits: Limits = NO_LIMITS
    """What a tenant may post."""
    tenant_limits: Mapping[str, Limits] = field(default_factory=dict)
    """Those of tenants that have their own."""
    buckets: frozenset[str] = frozenset()
    """Buckets that a handler may name."""
    proxy_pools: frozenset[str] = frozenset()
    """Pools that a replay may name."""
    replay_context: Mapping[str, Any] = field(default_factory=lambda: {"limits": {}})
    """What the hub has to know to make tasks of dead letters: limits, schemes by job type, what chooses a partition."""

    def tenant(self, headers: Mapping[bytes, bytes]) -> tuple[str, bool]:
        """The caller's tenant, and whether the request fixes it (so that `attributes.tenant` cannot). Raises Problem 400, 401 or 403."""
        if self.tokens:
            return self.tokens.tenant(headers), True
        self.check_open()
        named = tenant_header(headers)
        return (DEFAULT_TENANT, False) if named is None else (named, True)

    def scope(self, headers: Mapping[bytes, bytes]) -> str | None:
        """The tenant whose jobs the caller may see; None for all, which is so when no `api_tokens` are configured."""
        if self.tokens:
            return self.tokens.tenant(headers)
        self.check_open()
        return None

    def limits_for(self, tenant: str) -> Limits:
        """What this tenant may post."""
        return self.tenant_limits.get(tenant, self.limits)

    def check_open(self) -> None:
        """Raises Problem 401 when nobody without a token is let in."""
        if not self.open_ingest:
            raise Problem(401, "UNAUTHORIZED", "no api_tokens are configured, and anonymous use is not allowed on this address")

    def check_operator(self, headers: Mapping[bytes, bytes], method: str, now: float) -> int | None:
        """When the caller's session ends (seconds since 1970); None for a caller without one. Raises Problem 401 or 403 unless the caller
        may use `/operators`, and may do what `method` does."""
        if not self.operator or self.operator.sessions is None:
            if not self.open_operators:
                raise Problem(403, "FORBIDDEN", "no operator_token is configured, and anonymous use is not allowed on this address")
            # Whoever is on this machine may; the pages of others in a browser on this machine may not.
            check_origin(headers, method, needed=False)
            return None
        value = None if self.operator.is_presented(headers) else cookie_value(headers)
        until = None if value is None else self.operator.sessions.expires_at(value, now)
        if until is None:
            self.operator.check(headers)
            return None
        check_origin(headers, method, needed=True)
        return until

    def job_type(self, header: bytes | None, tenant: str) -> JobType:
        """The job type that the header names. Raises Problem 403 for one that is not configured, or not for this tenant."""
        job_type = self.job_types.get(DEFAULT_JOB_TYPE if header is None else header.decode("utf-8", "replace"))
        if job_type is None:
            raise Problem(403, "UNSUPPORTED_JOB_TYPE", "this job type is not configured")
        if job_type.tenants is not None and tenant not in job_type.tenants:
            raise Problem(403, "FORBIDDEN", "jobs of this type are not for this tenant: its `tenants` are others")
        return job_type
