"""Callbacks: a POST to the URL that a manifest names, once its job is settled, and one for each failed resource if it asks for that.
Signed as the Standard Webhooks specification says.

The URL is a stranger's: its addresses are vetted like those of downloads, the connection goes to a vetted one, and no redirect is followed.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import ipaddress
import socket
import time
from dataclasses import dataclass
from typing import Any

import httpx
import orjson

from fetchbox._core import refused_address
from fetchbox.config import Config, engine_options, format_address

LIMIT = 15.0
"""Seconds for name, connection and answer together."""
CONNECT_LIMIT = 5.0
SETTLED = "job.settled"
FAILED = "resource.failed"
GONE = 410
"""The receiver wants no more of it."""


class CallbackFailed(Exception):
    """A receiver did not take it. `is_final`: there is no point in another try."""

    def __init__(self, reason: str, *, is_final: bool = False) -> None:
        super().__init__(reason)
        self.is_final = is_final


class Callbacks:
    """Posts what is settled. Close it at the end."""

    def __init__(self, config: Config) -> None:
        self.reload(config, engine_options(config)["blocked_endpoints"])
        self._client = httpx.AsyncClient(
            trust_env=False,
            follow_redirects=False,
            timeout=httpx.Timeout(LIMIT, connect=CONNECT_LIMIT),
            # A receiver is called seldom; a connection kept to a vetted address would outlive the vetting.
            limits=httpx.Limits(max_keepalive_connections=0),
        )

    def reload(self, config: Config, blocked: list[str]) -> None:
        """Takes secret and networks of a configuration, for every call that begins from now on; `blocked` are our own endpoints."""
        settings = config.callbacks
        self._secret = None if settings.secret is None else secret_bytes(settings.secret.get_secret_value())
        self._allow = list(settings.allow_networks)
        self._blocked = blocked

    async def post(self, url: str, event: Event) -> None:
        """Tells the receiver. Raises CallbackFailed."""
        headers = {"content-type": "application/json", "user-agent": "FetchBox", **self._signed(event.id, event.body)}
        try:
            async with asyncio.timeout(LIMIT):
                await self._post(httpx.URL(url), headers, event.body)
        except TimeoutError:
            raise CallbackFailed(f"no answer within {LIMIT:g} s") from None
        except httpx.InvalidURL as error:
            raise CallbackFailed(f"the URL is not valid: {error}", is_final=True) from error
        except (httpx.HTTPError, OSError) as error:
            raise CallbackFailed(f"{type(error).__name__}: {error}") from error

    async def close(self) -> None:
        """Closes the client."""
        await self._client.aclose()

    def _signed(self, message: str, body: bytes) -> dict[str, str]:
        sent = int(time.time())
        headers = {"webhook-id": message, "webhook-timestamp": str(sent)}
        if self._secret is not None:
            headers["webhook-signature"] = signature(self._secret, message, sent, body)
        return headers

    async def _post(self, url: httpx.URL, headers: dict[str, str], body: bytes) -> None:
        address = await self._vetted(url)
        request = self._client.build_request(
            "POST",
            url.copy_with(host=address),
            content=body,
            headers={**headers, "host": url.netloc.decode("ascii")},
            # The certificate has to be the name's, not the address's.
            extensions={"sni_hostname": url.raw_host.decode("ascii").strip("[]")},
        )
        answer = await self._client.send(request, stream=True)
        await answer.aclose()
        if not answer.is_success:
            raise CallbackFailed(f"the receiver answered {answer.status_code}", is_final=answer.status_code == GONE)

    async def _vetted(self, url: httpx.URL) -> str:
        """An address of the URL's host. Raises CallbackFailed when the policy refuses one of them: mixed answers hide something."""
        if url.scheme not in ("http", "https"):
            raise CallbackFailed("only http and https are called", is_final=True)
        host, port = url.raw_host.decode("ascii").strip("[]"), url.port or (443 if url.scheme == "https" else 80)
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        addresses = list(dict.fromkeys(entry[4][0] for entry in found))
        plain = [str(ipaddress.ip_address(address)) for address in addresses]
        refused = refused_address([format_address(address, port) for address in plain], self._allow, self._blocked)
        if refused is not None:
            raise CallbackFailed(f"the address policy refuses it: {refused}; callbacks.allow_networks allows", is_final=True)
        return plain[0]


@dataclass(frozen=True, slots=True)
class Event:
    """What a receiver is told: `id` is the same for every delivery of it, so that a receiver can tell a repeat."""

    id: str
    body: bytes


def settled(job: dict[str, Any]) -> Event:
    """That a job is settled; another event when it is settled again after a replay."""
    return Event(f"{job['job_id']}.{job['finished_at']}", _body(SETTLED, job["finished_at"], job))


def failed(job: dict[str, Any], resource: dict[str, Any]) -> Event:
    """That a resource of it failed; another event when it fails again after a replay."""
    data = {"job_id": job["job_id"], **resource}
    return Event(f"{job['job_id']}.{resource['index']}.{resource['generation']}", _body(FAILED, resource["finished_at"], data))


def _body(kind: str, timestamp: str, data: dict[str, Any]) -> bytes:
    return orjson.dumps({"type": kind, "timestamp": timestamp, "data": data})


def secret_bytes(secret: str) -> bytes:
    """The key in `callbacks.secret`: "whsec_" and base64, padded or not."""
    encoded = secret.removeprefix("whsec_")
    return base64.b64decode(encoded + "=" * (-len(encoded) % 4))


def signature(key: bytes, message: str, sent: int, body: bytes) -> str:
    """The header `webhook-signature`: HMAC-SHA256 over id, time and body."""
    digest = hmac.new(key, f"{message}.{sent}.".encode() + body, hashlib.sha256).digest()
    return "v1," + base64.b64encode(digest).decode("ascii")
