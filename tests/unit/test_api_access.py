"""Who may do what: tenants, operators, and what another tenant sees."""

from __future__ import annotations

from typing import Any

import pytest
from tests.unit.api_fakes import Ingress, error_code, manifest

TOKENS: dict[str, Any] = {"server": {"api_tokens": {"token-a": "a", "token-b": "b"}, "operator_token": "op-secret"}}


@pytest.fixture
def ingress() -> Ingress:
    return Ingress(**TOKENS)


@pytest.mark.parametrize(
    "authorization",
    [None, "Bearer wrong", "Bearer", "Basic dG9rZW4tYTo=", "token-a", "Bearer token-", "Bearer token-ab", "Bearer token-a, Bearer token-b"],
)
async def test_without_a_valid_token_a_post_is_401(ingress: Ingress, authorization: str | None) -> None:
    response = await ingress.post(**({} if authorization is None else {"authorization": authorization}))
    assert (response.status_code, error_code(response)) == (401, "UNAUTHORIZED")
    assert response.headers["www-authenticate"].startswith("Bearer")
    assert ingress.hub.calls == []


@pytest.mark.parametrize("authorization", ["Bearer token-a", "bearer token-a", "BEARER  token-a "])
async def test_a_token_fixes_the_tenant(ingress: Ingress, authorization: str) -> None:
    job_id = (await ingress.post(authorization=authorization)).json()["job_id"]
    assert ingress.hub.jobs[job_id]["facts"]["tenant"] == "a"


async def test_a_token_with_its_own_tenant_named_is_fine(ingress: Ingress) -> None:
    assert (await ingress.post(authorization="Bearer token-a", X_Fetchbox_Tenant="a")).status_code == 202


async def test_a_token_with_another_tenant_in_the_header_is_403(ingress: Ingress) -> None:
    response = await ingress.post(authorization="Bearer token-a", X_Fetchbox_Tenant="b")
    assert (response.status_code, error_code(response)) == (403, "FORBIDDEN")


async def test_a_token_with_another_tenant_in_the_attributes_is_403(ingress: Ingress) -> None:
    response = await ingress.post(manifest(attributes={"tenant": "b"}), authorization="Bearer token-a")
    assert (response.status_code, error_code(response)) == (403, "FORBIDDEN")
    assert ingress.hub.jobs == {}


@pytest.mark.parametrize(("method", "rest"), [("GET", ""), ("GET", "/resources"), ("GET", "/logs"), ("POST", "/cancel")])
async def test_another_tenants_job_is_404_as_if_it_were_not_there(ingress: Ingress, method: str, rest: str) -> None:
    ingress.hub.answers["logs"] = [{"logs": [], "next_offset": 0, "partition": 0, "settled": True, "end": True}]
    job_id = (await ingress.post(authorization="Bearer token-a")).json()["job_id"]
    path = f"/jobs/{job_id}{rest}"
    own = await ingress.client.request(method, path, headers={"authorization": "Bearer token-a"})
    assert own.status_code == 200
    if rest in ("/logs", "/resources"):
        # These fakes do not look at the tenant: what matters is that it is passed on.
        assert ingress.hub.calls[-1][1]["tenant"] == "a"
        return
    other = await ingress.client.request(method, path, headers={"authorization": "Bearer token-b"})
    absent = await ingress.client.request(method, f"/jobs/{'0' * 8}{rest}", headers={"authorization": "Bearer token-b"})
    assert (other.status_code, other.json()) == (404, absent.json())
    assert (await ingress.client.request(method, path)).status_code == 401


async def test_without_api_tokens_a_job_is_seen_by_its_id() -> None:
    ingress = Ingress()
    job_id = (await ingress.post(X_Fetchbox_Tenant="a")).json()["job_id"]
    assert (await ingress.client.get(f"/jobs/{job_id}")).status_code == 200


@pytest.mark.parametrize(
    "headers", [{}, {"authorization": "Bearer token-a"}, {"x-fetchbox-operator-token": "op-secre"}, {"x-fetchbox-operator-token": ""}]
)
async def test_operators_without_their_token_are_401(ingress: Ingress, headers: dict[str, str]) -> None:
    for path in ("/operators/jobs", "/operators/health", "/operators/jobs/x", "/operators/dlq"):
        response = await ingress.client.get(path, headers=headers)
        assert (response.status_code, error_code(response)) == (401, "UNAUTHORIZED")


@pytest.mark.parametrize("headers", [{"x-fetchbox-operator-token": "op-secret"}, {"authorization": "Bearer op-secret"}])
async def test_operators_see_every_tenant(ingress: Ingress, headers: dict[str, str]) -> None:
    job_id = (await ingress.post(authorization="Bearer token-a")).json()["job_id"]
    assert (await ingress.client.get(f"/operators/jobs/{job_id}", headers=headers)).json()["tenant"] == "a"


async def test_operators_are_open_on_loopback_without_a_token() -> None:
    assert (await Ingress().client.get("/operators/jobs")).status_code == 200


async def test_operators_are_closed_beyond_loopback_without_a_token() -> None:
    ingress = Ingress(server={"bind_addr": "0.0.0.0:80", "api_tokens": {"t": "a"}})
    response = await ingress.client.get("/operators/jobs")
    assert (response.status_code, error_code(response)) == (403, "FORBIDDEN")


async def test_allow_anonymous_opens_everything_beyond_loopback() -> None:
    ingress = Ingress(server={"bind_addr": "0.0.0.0:80", "allow_anonymous": True})
    assert (await ingress.post()).status_code == 202
    assert (await ingress.client.get("/operators/jobs")).status_code == 200


async def test_beyond_loopback_without_any_token_nobody_posts() -> None:
    response = await Ingress(server={"bind_addr": "0.0.0.0:80"}).post()
    assert (response.status_code, error_code(response)) == (401, "UNAUTHORIZED")
