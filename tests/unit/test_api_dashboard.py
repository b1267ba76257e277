"""The dashboard's files, its figures, and the sessions of browsers."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.unit.api_fakes import Ingress, error_code

import fetchbox.api
from fetchbox.api.dashboard import parts
from fetchbox.api.session import COOKIE, SESSION_SECONDS, Sessions

TOKEN = "op-secret"
STATIC = Path(fetchbox.api.__file__).parent / "static"
ORIGIN = {"origin": "http://test"}


@pytest.fixture
def ingress() -> Ingress:
    return Ingress(server={"operator_token": TOKEN, "api_tokens": {"t": "a"}})


async def log_in(ingress: Ingress, token: str = TOKEN, **headers: str) -> httpx.Response:
    return await ingress.client.post("/operators/session", json={"token": token}, headers=ORIGIN | headers)


# ---- files ------------------------------------------------------------------------------------------------------------------------


async def test_the_page_may_load_nothing_from_elsewhere_and_run_nothing_of_its_own(ingress: Ingress) -> None:
    response = await ingress.client.get("/")
    assert (response.status_code, response.headers["content-type"]) == (200, "text/html; charset=utf-8")
    policy = response.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "require-trusted-types-for 'script'" in policy
    assert re.findall(r"<script[^>]*>([^<]*)</script>", response.text) == [""]
    for trace in ("style=", "http://", "https://", "onclick", "<style"):
        assert trace not in response.text


async def test_every_part_that_is_named_is_served_and_no_other(ingress: Ingress) -> None:
    page = (await ingress.client.get("/")).text
    named = set(re.findall(r'"dashboard/([\w.]+)"', page))
    for name, (content, _, _) in parts().items():
        named |= set(re.findall(r'from "\./([\w.]+)"', content.decode()))
        response = await ingress.client.get(f"/dashboard/{name}")
        assert response.status_code == (404 if name == "index.html" else 200)
    assert named == set(parts()) - {"index.html"}
    for name in ("index.html", "nope.js", "..%2Fapp.py", "%2e%2e", "app.py"):
        assert (await ingress.client.get(f"/dashboard/{name}")).status_code == 404
    kinds = {name: (await ingress.client.get(f"/dashboard/{name}")).headers["content-type"].split(";")[0] for name in named}
    assert {kinds["app.js"], kinds["style.css"], kinds["icon.svg"]} == {"text/javascript", "text/css", "image/svg+xml"}


async def test_a_part_that_is_known_is_not_sent_again(ingress: Ingress) -> None:
    tag = (await ingress.client.get("/dashboard/app.js")).headers["etag"]
    again = await ingress.client.get("/dashboard/app.js", headers={"if-none-match": tag})
    assert (again.status_code, again.content) == (304, b"")


def test_no_script_makes_markup_of_text() -> None:
    """The browser refuses it as well (trusted types); here it is found before a browser is."""
    for path in STATIC.glob("*.js"):
        text = path.read_text(encoding="utf-8")
        for sink in (
            "innerHTML",
            "outerHTML",
            "insertAdjacentHTML",
            "document.write",
            "eval(",
            "new Function",
            "createContextualFragment",
            "srcdoc",
        ):
            assert sink not in text, f"{sink} in {path.name}"
        # Addresses are made of our own paths, never of what a job says.
        assert re.search(r"https?://(?!www\.w3\.org/2000/svg|(old|new)\.example|example\.com)", text) is None, path.name


def test_the_whole_dashboard_is_small() -> None:
    assert sum(len(content) for content, _, _ in parts().values()) < 100_000


# ---- figures ----------------------------------------------------------------------------------------------------------------------


async def test_any_number_of_dashboards_are_one_question(ingress: Ingress) -> None:
    headers = {"x-fetchbox-operator-token": TOKEN}
    answers = [(await ingress.client.get("/operators/overview", headers=headers)).json() for _ in range(5)]
    assert ingress.hub.called("query overview") == [{"history": False}]
    assert answers[0] == answers[4]
    assert answers[0]["components"]["hub"] == {"status": "ok", "since": "2026-01-31T11:00:00Z"}
    assert set(answers[0]["components"]) == {"api", "hub", "broker", "storage", "proxy_pools", "workers"}
    assert (answers[0]["status"], answers[0]["resources"]["pending"]) == ("ok", 1)
    await ingress.client.get("/operators/overview?history=true", headers=headers)
    assert ingress.hub.called("query overview")[1:] == [{"history": True}]
    assert (await ingress.client.get("/operators/overview")).status_code == 401


async def test_the_hub_says_since_when(ingress: Ingress) -> None:
    red = {"status": "degraded", "reason": "no endpoint works of proxy pool dc", "since": "2026-01-31T10:00:00Z"}
    ingress.hub.answers["health"] = [{"components": {"proxy_pools": red}, "workers": 1}]
    response = await ingress.client.get("/operators/health", headers={"x-fetchbox-operator-token": TOKEN})
    assert (response.status_code, response.json()["components"]["proxy_pools"]) == (503, red)
    # Pools are no part of taking jobs.
    assert (await ingress.client.get("/health/ready")).status_code == 200


async def test_what_this_process_saw_itself_is_well_since_it_sees_so(ingress: Ingress) -> None:
    now = 1_700_000_000.0
    ingress.app.state.service.clock = ingress.app.state.service.watch._clock = lambda: now
    headers = {"x-fetchbox-operator-token": TOKEN}
    well = {"status": "ok", "since": "2020-01-31T10:00:00Z"}
    ingress.hub.answers["health"] = [{"components": {"hub": well}, "workers": 1}]
    assert (await ingress.client.get("/operators/health", headers=headers)).json()["components"]["hub"] == well
    ingress.hub.connected = False
    assert (await ingress.client.get("/operators/health", headers=headers)).json()["components"]["hub"]["status"] == "degraded"
    ingress.hub.connected = True
    now += 60
    assert (await ingress.client.get("/operators/health", headers=headers)).json()["components"]["hub"][
        "since"
    ] == "2023-11-14T22:14:20.000Z"


# ---- sessions ---------------------------------------------------------------------------------------------------------------------


async def test_a_token_is_exchanged_for_a_cookie_that_no_script_reads(ingress: Ingress) -> None:
    response = await log_in(ingress)
    assert response.status_code == 200
    assert response.json()["token_needed"] is True
    cookie = response.headers["set-cookie"]
    name, *attributes = cookie.split("; ")
    assert name.startswith(f"{COOKIE}=")
    assert {"HttpOnly", "SameSite=Strict", f"Max-Age={SESSION_SECONDS}"} <= set(attributes)
    assert "Secure" not in attributes
    assert TOKEN not in cookie
    session = await ingress.client.get("/operators/session")
    assert session.json() == response.json()
    assert (await ingress.client.get("/operators/jobs")).status_code == 200


async def test_under_tls_the_cookie_is_for_tls_only() -> None:
    ingress = Ingress(server={"operator_token": TOKEN})
    direct = await ingress.client.post("https://test/operators/session", json={"token": TOKEN}, headers={"origin": "https://test"})
    behind_a_proxy = await log_in(ingress, origin="https://test")
    # There the port of the page is TLS's, and Host names none.
    assert all("; Secure" in answer.headers["set-cookie"] for answer in (direct, behind_a_proxy))


@pytest.mark.parametrize("token", ["", "op-secre", "op-secret ", "ä", "\x00", "t"])
async def test_a_wrong_token_is_401_and_no_cookie(ingress: Ingress, token: str) -> None:
    response = await log_in(ingress, token)
    assert (response.status_code, error_code(response)) == (401, "UNAUTHORIZED")
    assert "set-cookie" not in response.headers


@pytest.mark.parametrize("body", [b"", b"{}", b"[]", b'{"token": 5}', b'{"token": "a", "more": 1}', b"{", b'"op-secret"', b"\xff"])
async def test_a_malformed_login_is_400(ingress: Ingress, body: bytes) -> None:
    headers = ORIGIN | {"content-type": "application/json"}
    response = await ingress.client.post("/operators/session", content=body, headers=headers)
    assert (response.status_code, error_code(response)) == (400, "INVALID_PAYLOAD")


async def test_a_form_of_another_site_logs_nobody_in(ingress: Ingress) -> None:
    assert (await log_in(ingress, origin="http://evil.example")).status_code == 403
    plain = await ingress.client.post(
        "/operators/session", content=b'{"token": "op-secret"}', headers=ORIGIN | {"content-type": "text/plain"}
    )
    assert plain.status_code == 415


async def test_a_lone_surrogate_is_no_token(ingress: Ingress) -> None:
    headers = ORIGIN | {"content-type": "application/json"}
    response = await ingress.client.post("/operators/session", content=rb'{"token": "\ud800"}', headers=headers)
    assert response.status_code in (400, 401)


async def test_a_session_ends_by_its_time_by_logging_out_and_with_the_token(ingress: Ingress) -> None:
    now = 1_700_000_000.0
    service = ingress.app.state.service
    service.clock = lambda: now
    await log_in(ingress)
    assert (await ingress.client.get("/operators/session")).json()["expires_at"] == "2023-11-15T10:13:20Z"
    now += SESSION_SECONDS - 1
    assert (await ingress.client.get("/operators/jobs")).status_code == 200
    now += 1
    assert (await ingress.client.get("/operators/jobs")).status_code == 401
    await log_in(ingress)
    kept = ingress.client.cookies[COOKIE]
    assert (await ingress.client.delete("/operators/session", headers=ORIGIN)).status_code == 204
    assert (await ingress.client.get("/operators/jobs")).status_code == 401
    # Another process, or the same one started again, knows it all the same; with another token it does not.
    header = {"cookie": f"other=1; {COOKIE}={kept}"}
    other = Ingress(server={"operator_token": TOKEN})
    other.app.state.service.clock = lambda: now
    assert (await other.client.get("/operators/jobs", headers=header)).status_code == 200
    changed = Ingress(server={"operator_token": "another"})
    changed.app.state.service.clock = lambda: now
    assert (await changed.client.get("/operators/jobs", headers=header)).status_code == 401


def test_only_what_was_signed_is_believed() -> None:
    sessions = Sessions(TOKEN)
    good = sessions.make(1000)
    assert (sessions.expires_at(good, 999.0), sessions.expires_at(good, 1000.0)) == (1000, None)
    assert sessions.make(1000) != good
    assert Sessions("other").expires_at(good, 0.0) is None
    for at in range(len(good)):
        changed = good[:at] + ("A" if good[at] != "A" else "B") + good[at + 1 :]
        # The last character holds bits that mean nothing.
        assert sessions.expires_at(changed, 0.0) is None or at == len(good) - 1
    for bad in ("", "A", good[:-4], good + "AAAA", "ä" * 71, "\x00", f"{good} ", "=" * 100):
        assert sessions.expires_at(bad, 0.0) is None


# ---- origins ----------------------------------------------------------------------------------------------------------------------

CHANGES: list[tuple[str, str, Any]] = [
    ("POST", "/operators/jobs/{job}/cancel", None),
    ("POST", "/operators/dlq/replay", {"filter": {}}),
    ("POST", "/operators/dlq/purge", {"filter": {}}),
]
FOREIGN = [
    "http://evil.example",
    "http://test.evil.example",
    "http://test:81",
    "https://test:80",
    "null",
    "http://",
    "file://",
    "http://test@evil",
    "ä",
    "test",
]


@pytest.mark.parametrize(("method", "path", "body"), CHANGES)
@pytest.mark.parametrize("origin", [None, *FOREIGN])
async def test_a_cookie_alone_changes_nothing_for_another_site(
    ingress: Ingress, method: str, path: str, body: Any, origin: str | None
) -> None:
    job_id = (await ingress.post(authorization="Bearer t")).json()["job_id"]
    await log_in(ingress)
    before = len(ingress.hub.calls)
    headers: dict[bytes, bytes] = {} if origin is None else {b"origin": origin.encode()}
    response = await ingress.client.request(method, path.format(job=job_id), json=body, headers=headers)
    assert (response.status_code, error_code(response)) == (403, "FORBIDDEN")
    assert len(ingress.hub.calls) == before
    # Reading does no harm: whose page it is cannot read the answer.
    assert (await ingress.client.get("/operators/jobs", headers=headers)).status_code == 200


@pytest.mark.parametrize("origin", ["http://test", "http://test:80", "HTTP://TEST", "https://test"])
async def test_the_page_itself_may(ingress: Ingress, origin: str) -> None:
    job_id = (await ingress.post(authorization="Bearer t")).json()["job_id"]
    await log_in(ingress)
    response = await ingress.client.post(f"/operators/jobs/{job_id}/cancel", headers={"origin": origin})
    assert response.status_code == 200


async def test_a_token_in_a_header_needs_no_origin(ingress: Ingress) -> None:
    job_id = (await ingress.post(authorization="Bearer t")).json()["job_id"]
    for headers in ({"x-fetchbox-operator-token": TOKEN}, {"authorization": f"Bearer {TOKEN}", "origin": "http://evil.example"}):
        assert (await ingress.client.post(f"/operators/jobs/{job_id}/cancel", headers=headers)).status_code == 200
    await log_in(ingress)
    # A wrong token is wrong, whatever the cookie.
    assert (await ingress.client.get("/operators/jobs", headers={"x-fetchbox-operator-token": "no"})).status_code == 401


async def test_without_a_token_pages_of_other_sites_change_nothing_on_loopback() -> None:
    ingress = Ingress()
    job_id = (await ingress.post()).json()["job_id"]
    assert (await ingress.client.get("/operators/session")).json() == {"token_needed": False, "expires_at": None}
    answer = await ingress.client.post(f"/operators/jobs/{job_id}/cancel", headers={"origin": "http://evil.example"})
    assert (answer.status_code, error_code(answer)) == (403, "FORBIDDEN")
    for headers in ({}, ORIGIN):
        assert (await ingress.client.post(f"/operators/jobs/{job_id}/cancel", headers=headers)).status_code == 200
