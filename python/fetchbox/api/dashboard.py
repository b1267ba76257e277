"""The dashboard: a page and its parts, all of them in the package. Nothing is built and nothing comes from elsewhere.

The page itself holds nothing that is secret; what it shows it asks of `/operators`, which wants the operator's session.
"""

from __future__ import annotations

import hashlib
from functools import cache
from importlib.resources import files

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from fetchbox.api.problems import Problem
from fetchbox.api.types import HEADERS

PAGE = "index.html"
_KINDS = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
# Trusted types: no text ever becomes markup or code, the browser refuses it, whoever forgets.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; form-action 'none'; base-uri 'none'; "
    "frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
_HEADERS = {
    "content-security-policy": _POLICY,
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "x-frame-options": "DENY",
    "cache-control": "no-cache",
}


@cache
def parts() -> dict[str, tuple[bytes, str, str]]:
    """Every file of the dashboard by name: its bytes, media type and entity tag."""
    found = {}
    for entry in files("fetchbox.api").joinpath("static").iterdir():
        kind = _KINDS.get(entry.name.rpartition(".")[2])
        if kind is not None and entry.is_file():
            content = entry.read_bytes()
            found[entry.name] = (content, kind, f'"{hashlib.sha256(content).hexdigest()[:20]}"')
    return found


def _answer(request: Request, name: str) -> Response:
    part = parts().get(name)
    if part is None:
        raise Problem(404, "NOT_FOUND", "there is nothing at this path")
    content, kind, tag = part
    headers = {**_HEADERS, "etag": tag}
    if request.scope[HEADERS].get(b"if-none-match") == tag.encode():
        return Response(status_code=304, headers=headers)
    return Response(content, headers=headers, media_type=kind)


async def page(request: Request) -> Response:
    """The page."""
    return _answer(request, PAGE)


async def part(request: Request) -> Response:
    """A script, the style or the icon."""
    name: str = request.path_params["name"]
    return _answer(request, "" if name == PAGE else name)


def dashboard_routes() -> list[Route]:
    """The routes of this file."""
    return [Route("/", page, methods=["GET"]), Route("/dashboard/{name}", part, methods=["GET"])]
