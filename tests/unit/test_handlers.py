"""Handlers: how they are found, how they run, and that none of them can take the api down."""

from __future__ import annotations

import asyncio
import threading
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.unit import handler_samples
from tests.unit.api_fakes import Ingress, error_code, manifest

from fetchbox.errors import HandlerError, HubUnavailable, Refused
from fetchbox.handler_host import STALLED_AFTER, HandlerHost, HandlerSpec
from fetchbox.handlers import Handler, create_handler, defines, load_handler
from fetchbox.manifest import DownloadTask, Manifest, Resource, decode_manifest, encode_tasks
from fetchbox.testing import wait_until_async

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "gallery_handler"
SAMPLES = "tests.unit.handler_samples"


OPEN: list[Ingress] = []


@pytest.fixture(autouse=True)
def _let_go() -> Iterator[None]:
    handler_samples.NEVER = threading.Event()
    yield
    handler_samples.NEVER.set()
    while OPEN:
        OPEN.pop().app.state.service.handlers.close()


def with_handler(name: str, *, timeout: float = 5.0, options: dict[str, Any] | None = None, **sections: Any) -> Ingress:
    kind = {"handler": f"{SAMPLES}:{name}", "handler_timeout": timeout, "options": options or {}}
    ingress = Ingress(job_types={"h": kind}, **sections)
    OPEN.append(ingress)
    return ingress


async def post(ingress: Ingress, count: int = 2, **headers: str) -> Any:
    return await ingress.post(manifest(count), X_Fetchbox_Job_Type="h", **headers)


def test_a_handler_is_loaded_by_path() -> None:
    assert load_handler(f"{SAMPLES}:Doubling").__name__ == "Doubling"
    assert create_handler(f"{SAMPLES}:Doubling", {"a": 1}).options == {"a": 1}


@pytest.mark.parametrize(
    "spec", ["no.such.module:Class", f"{SAMPLES}:Missing", f"{SAMPLES}:NoHandler", "no-such-entry-point", f"{SAMPLES}:NEVER", ":"]
)
def test_a_handler_that_cannot_be_loaded_says_why(spec: str) -> None:
    with pytest.raises(HandlerError, match="handler") as caught:
        load_handler(spec)
    assert caught.value.code == "HANDLER_ERROR"


def test_worker_hooks_are_found_only_where_they_are_defined() -> None:
    class Signing(Handler):
        async def before_fetch(self, task: DownloadTask) -> None: ...

    assert defines(Signing, "before_fetch")
    assert not defines(Signing({}), "finalize_job")
    assert not defines(Handler, "before_fetch")


def test_a_task_takes_what_its_resource_says() -> None:
    resource = Resource("https://a/", id="x", headers={"h": "1"}, tags={"t": "2"}, key="k")
    task = DownloadTask.of(resource, proxy="dc")
    assert (task.url, task.id, task.headers, task.tags, task.key, task.proxy) == ("https://a/", "x", {"h": "1"}, {"t": "2"}, "k", "dc")
    task.headers["h"] = "changed"
    assert resource.headers["h"] == "1"


def test_two_tasks_never_share_a_dictionary() -> None:
    first, second = DownloadTask("a"), DownloadTask("b")
    first.headers["x"] = "y"
    assert second.headers == {}


def test_tasks_are_written_without_what_is_not_set() -> None:
    assert (
        encode_tasks([DownloadTask("https://a/"), DownloadTask("https://b/", bucket="b2")])
        == b'[{"url":"https://a/"},{"url":"https://b/","bucket":"b2"}]'
    )


def test_a_manifest_is_read_from_its_normal_form() -> None:
    data = b'{"manifest_version":"v1","metadata":null,"resources":[{"url":"https://a/","id":"0","key":null}],"attributes":{"crawl_id":"c"},"more":1}'
    read = decode_manifest(data, job_id="j", job_type="t", tenant="n")
    assert (read.resources[0].url, read.metadata, read.attributes, read.job_id) == ("https://a/", {}, {"crawl_id": "c"}, "j")


async def test_an_async_handler_checks_drops_and_adds() -> None:
    ingress = with_handler("Doubling", options={"prefix": "p"})
    body = manifest(3)
    body["resources"][1]["tags"] = {"skip": "yes"}
    response = await ingress.post(body, X_Fetchbox_Job_Type="h")
    answer = response.json()
    assert (response.status_code, answer["resource_count"]) == (202, 3)
    tasks = ingress.hub.jobs[answer["job_id"]]["tasks"].tasks
    assert [task["id"] for task in tasks] == ["0", "2", "added"]
    assert all(task["headers"] == {"x-job": answer["job_id"]} and task["key_prefix"] == "p" for task in tasks)


async def test_a_sync_handler_may_change_the_manifest_in_place() -> None:
    ingress = with_handler("Plain")
    job_id = (await post(ingress, 3)).json()["job_id"]
    assert [task["id"] for task in ingress.hub.jobs[job_id]["tasks"].tasks] == ["2", "1", "0"]


async def test_a_coroutine_may_return_resources() -> None:
    assert (await post(with_handler("Returning"))).json()["resource_count"] == 2


async def test_a_handler_may_find_nothing_to_fetch() -> None:
    response = await post(with_handler("Empty"))
    assert (response.status_code, response.json()["resource_count"]) == (202, 0)


async def test_the_base_handler_passes_the_manifest_through() -> None:
    ingress = Ingress(job_types={"h": {"handler": "fetchbox.handlers:Handler"}})
    OPEN.append(ingress)
    assert (await post(ingress, 7)).json()["resource_count"] == 7


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("Refusing", "HANDLER_NO_GALLERY"),
        ("Failing", "HANDLER_ERROR"),
        ("TimingOut", "HANDLER_ERROR"),
        ("Exiting", "HANDLER_ERROR"),
        ("ExitingInThread", "HANDLER_ERROR"),
        ("Endless", "HANDLER_BAD_TASK"),
        ("WrongItems", "HANDLER_BAD_TASK"),
        ("WrongManifest", "HANDLER_ERROR"),
        ("WrongUrl", "HANDLER_BAD_TASK"),
        ("NotJson", "HANDLER_BAD_TASK"),
        ("Missing", "HANDLER_ERROR"),
    ],
)
async def test_what_a_handler_does_wrong_is_500_and_leaves_nothing(name: str, code: str) -> None:
    ingress = with_handler(name)
    response = await post(ingress, Idempotency_Key="k")
    assert (response.status_code, error_code(response)) == (500, code)
    assert "secret" not in response.text
    assert ingress.hub.jobs == {}
    assert ingress.hub.keys == {}
    assert (await ingress.post()).status_code == 202


@pytest.mark.parametrize("name", ["HangingAsync", "HangingThread", "BlockingLoop", "HangingConstructor"])
async def test_a_handler_that_hangs_is_given_up_and_its_reservation_released(name: str) -> None:
    ingress = with_handler(name, timeout=0.05)
    response = await post(ingress, Idempotency_Key="k")
    assert (response.status_code, error_code(response)) == (500, "HANDLER_TIMEOUT")
    assert ingress.hub.keys == {}
    assert (await ingress.post()).status_code == 202


async def test_a_blocked_loop_is_replaced() -> None:
    now = 0.0
    host = HandlerHost(clock=lambda: now)
    with pytest.raises(HandlerError) as caught:
        await host.build(HandlerSpec("h", f"{SAMPLES}:BlockingLoop", timeout=0.05), Manifest([Resource("https://a/")]), 10)
    assert caught.value.code == "HANDLER_TIMEOUT"
    now = STALLED_AFTER + 0.1
    tasks = await host.build(HandlerSpec("h", f"{SAMPLES}:Doubling"), Manifest([Resource("https://a/")]), 10)
    assert len(tasks) == 2
    host.close()


async def test_other_handlers_go_on_while_one_hangs_in_threads() -> None:
    host = HandlerHost()
    hanging = [
        asyncio.ensure_future(host.build(HandlerSpec("h", f"{SAMPLES}:HangingThread", timeout=0.5), Manifest([]), 10)) for _ in range(10)
    ]
    tasks = await host.build(HandlerSpec("p", f"{SAMPLES}:Plain", timeout=5), Manifest([Resource("https://a/")]), 10)
    assert len(tasks) == 1
    results = await asyncio.gather(*hanging, return_exceptions=True)
    assert all(isinstance(result, HandlerError) for result in results)
    host.close()


async def test_beyond_a_number_of_hanging_calls_handlers_are_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fetchbox.handler_host.MAX_ABANDONED", 2)
    host = HandlerHost()
    spec = HandlerSpec("h", f"{SAMPLES}:HangingThread", timeout=0.02)
    for _ in range(2):
        with pytest.raises(HandlerError):
            await host.build(spec, Manifest([]), 10)
    await wait_until_async(lambda: host.hanging == 2, 5)
    with pytest.raises(HandlerError, match="too many"):
        await host.build(HandlerSpec("p", f"{SAMPLES}:Plain"), Manifest([Resource("https://a/")]), 10)
    handler_samples.NEVER.set()
    await wait_until_async(lambda: host.hanging == 0, 5)
    assert len(await host.build(HandlerSpec("p", f"{SAMPLES}:Plain"), Manifest([Resource("https://a/")]), 10)) == 1
    host.close()


async def test_a_bucket_that_is_not_configured_is_refused() -> None:
    response = await post(with_handler("NamesBucket", options={"bucket": "elsewhere"}))
    assert (response.status_code, error_code(response)) == (500, "HANDLER_BAD_TASK")


async def test_a_bucket_of_another_job_type_may_be_named() -> None:
    ingress = Ingress(
        job_types={
            "h": {"handler": f"{SAMPLES}:NamesBucket", "options": {"bucket": "b2"}},
            "other": {"storage": {"bucket": "b2"}},
        }
    )
    OPEN.append(ingress)
    assert (await post(ingress)).status_code == 202


async def test_an_invalid_manifest_never_reaches_the_handler() -> None:
    ingress = with_handler("Doubling")
    response = await post(ingress, 0, Idempotency_Key="k")
    assert (response.status_code, error_code(response)) == (400, "INVALID_PAYLOAD")
    assert ingress.hub.calls == []


async def test_handlers_run_once_for_a_repeated_key() -> None:
    ingress = with_handler("Doubling")
    first = await post(ingress, Idempotency_Key="k")
    second = await post(ingress, Idempotency_Key="k")
    assert (first.status_code, second.status_code) == (202, 200)
    assert first.json() == second.json()
    assert len(ingress.hub.called("accept")) == 1


async def test_a_retry_takes_over_the_reservation_of_a_post_that_died() -> None:
    ingress = with_handler("Doubling")
    ingress.hub.fail("accept", HubUnavailable("gone"))
    first = await post(ingress, Idempotency_Key="k")
    reserved = ingress.hub.called("reserve")[0]["job_id"]
    second = await post(ingress, Idempotency_Key="k")
    assert (first.status_code, second.status_code) == (503, 202)
    assert second.json()["job_id"] == reserved
    assert ingress.hub.called("release") == []
    assert f"/{reserved}/" in second.json()["manifest_key"]


async def test_a_refused_accept_releases_the_reservation() -> None:
    ingress = with_handler("Doubling")
    ingress.hub.fail("accept", Refused("LEDGER_FULL", "full"))
    response = await post(ingress, Idempotency_Key="k")
    assert (response.status_code, error_code(response)) == (503, "LEDGER_FULL")
    assert ingress.hub.keys == {}


async def test_the_rate_limit_is_counted_once_a_post() -> None:
    ingress = with_handler("Doubling")
    await post(ingress, Idempotency_Key="k")
    assert ingress.hub.called("reserve")[0]["rate_limit"] == {"per_second": 50.0, "burst": 50}
    assert ingress.hub.called("accept")[0]["rate_limit"] is None


async def test_the_gallery_example_does_what_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLE))
    sections = tomllib.loads((EXAMPLE / "fetchbox.toml").read_text())
    ingress = Ingress(**sections)
    OPEN.append(ingress)
    response = await ingress.post((EXAMPLE / "manifest.json").read_bytes(), X_Fetchbox_Job_Type="gallery")
    assert (response.status_code, response.json()["resource_count"]) == (202, 2)
    tasks = ingress.hub.jobs[response.json()["job_id"]]["tasks"].tasks
    assert [task["url"] for task in tasks] == ["https://pictures.example/full/1.jpg", "https://pictures.example/full/2.jpg"]
    assert [task["key"].rpartition("/")[2] for task in tasks] == ["0000", "0001"]
    assert [task["headers"] for task in tasks] == [{"referer": "https://pictures.example/sunsets"}] * 2
    handler = create_handler("gallery:GalleryHandler", {"signing_key": "k"})
    task = DownloadTask("https://pictures.example/full/1.jpg")
    await handler.before_fetch(task)  # type: ignore[attr-defined]
    assert set(task.headers) == {"x-expires", "x-signature"}
    assert defines(handler, "finalize_job")
