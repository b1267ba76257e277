"""`/openapi.json` and `/docs`."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from fetchbox.api.docs_page import page
from fetchbox.api.openapi import document_json

_CONTENT_POLICY = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"


async def openapi(request: Request) -> Response:
    """The document."""
    return Response(document_json(), media_type="application/json")


async def docs(request: Request) -> Response:
    """The document for people: plain HTML, no script, nothing from elsewhere."""
    return Response(page(), media_type="text/html; charset=utf-8", headers={"content-security-policy": _CONTENT_POLICY})


def document_routes() -> list[Route]:
    """The routes of this file."""
    return [Route("/openapi.json", openapi, methods=["GET"]), Route("/docs", docs, methods=["GET"])]
