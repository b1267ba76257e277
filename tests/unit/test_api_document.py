"""The API document says what the application does, no more and no less."""

from __future__ import annotations

import pytest
from openapi_spec_validator import validate
from starlette.routing import Route
from tests.unit.api_fakes import Ingress

from fetchbox.api.openapi import document


@pytest.fixture
def ingress() -> Ingress:
    return Ingress()


def test_the_document_is_valid_openapi() -> None:
    validate(document())


def test_every_route_is_described_and_nothing_else(ingress: Ingress) -> None:
    served = {
        (route.path, method.lower())
        for route in ingress.app.routes
        if isinstance(route, Route)
        for method in route.methods or ()
        if method != "HEAD"
    }
    described = {(path, method) for path, item in document()["paths"].items() for method in item}
    assert described == served


async def test_the_document_is_served(ingress: Ingress) -> None:
    response = await ingress.client.get("/openapi.json")
    assert response.status_code == 200
    assert response.json() == document()


async def test_the_page_needs_nothing_from_elsewhere(ingress: Ingress) -> None:
    response = await ingress.client.get("/docs")
    assert response.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in response.headers["content-security-policy"]
    for trace in ("http://", "https://", "<script", "src="):
        assert trace not in response.text.replace("^[Hh][Tt][Tt][Pp][Ss]?://", "")
    for path in document()["paths"]:
        assert path in response.text
