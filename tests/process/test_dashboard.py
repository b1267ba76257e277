"""The dashboard in a real browser: a person's way from the login to a replay, and what hostile texts do there: nothing.

Needs a Chromium (Debian: `apt-get install chromium`, or FETCHBOX_CHROMIUM=/path/to/it) and playwright (`pip install playwright`).
`FETCHBOX_SCREENSHOTS=DIRECTORY` keeps pictures of what was seen.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.process.faults import frozen
from tests.process.origins import OriginProcess
from tests.process.service import Service

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: .venv-test/bin/pip install playwright")
CHROMIUM = os.environ.get("FETCHBOX_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
if CHROMIUM is None:
    pytest.skip("there is no chromium: apt-get install chromium, or set FETCHBOX_CHROMIUM", allow_module_level=True)

TOKEN = "operator-t0ken"
HOSTILE = "<img src=x onerror=\"window.hurt='yes'\"><script>window.hurt='yes'</script>"
LIMIT_MS = 15_000
SCREENSHOTS = os.environ.get("FETCHBOX_SCREENSHOTS")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as running:
        chromium = running.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OriginProcess]:
    with OriginProcess(tmp_path_factory.mktemp("origin")) as running:
        yield running


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    overrides = {
        "server": {"operator_token": TOKEN},
        # Two jobs at a time have something to show while they run.
        "fetch": {"max_attempts": 1, "per_host_rate": 20, "per_host_concurrency": 4},
    }
    directory = tmp_path_factory.mktemp("service")
    with Service(directory, overrides, headers={"x-fetchbox-operator-token": TOKEN}).start() as running:
        yield running
        running.end()


@pytest.fixture
def page(browser: Any, service: Service) -> Iterator[Any]:
    """A page of a browser that knows nothing; whatever goes wrong in it fails the test."""
    context = browser.new_context(base_url=service.url, viewport={"width": 1280, "height": 900})
    opened = context.new_page()
    opened.set_default_timeout(LIMIT_MS)
    faults: list[str] = []
    opened.on("pageerror", lambda error: faults.append(str(error)))
    opened.on(
        "console", lambda said: faults.append(said.text) if "Content Security Policy" in said.text or "TrustedHTML" in said.text else None
    )
    asked: list[str] = []
    opened.on("request", lambda request: asked.append(request.url))
    yield opened
    hurt = opened.evaluate("window.hurt")
    context.close()
    assert hurt is None, "a text became code"
    assert faults == []
    assert [url for url in asked if not url.startswith(service.url + "/")] == []


def expect(locator: Any) -> Any:
    return playwright.expect(locator)


def log_in(page: Any, token: str = TOKEN) -> None:
    page.goto("/")
    page.get_by_label("Operator token").fill(token)
    page.get_by_label("Operator token").press("Enter")


def picture(page: Any, name: str) -> None:
    """Keeps what is seen, when somebody wants to look at it."""
    if SCREENSHOTS:
        page.screenshot(path=Path(SCREENSHOTS) / f"{name}.png")


def post(service: Service, resources: list[dict[str, Any]], **attributes: Any) -> str:
    manifest = {"manifest_version": "v1", "metadata": {}, "resources": resources, "attributes": attributes}
    response = service.http.post(json.dumps(manifest).encode())
    assert response.status_code == 202, response.text
    return str(response.json()["job_id"])


def good(origin: OriginProcess, count: int, of: str) -> list[dict[str, Any]]:
    return [{"id": f"r{index}", "url": f"{origin.base_url}/bytes/2048?seed={index}&of={of}"} for index in range(count)]


def test_a_wrong_token_gets_nothing_and_the_right_one_stays(page: Any, service: Service) -> None:
    log_in(page, "wrong")
    expect(page.get_by_role("alert")).to_have_text("This is not the operator token.")
    assert page.context.cookies() == []
    picture(page, "login")
    log_in(page)
    expect(page.locator("#standing")).to_have_text("all well")
    [cookie] = page.context.cookies()
    assert (cookie["httpOnly"], cookie["sameSite"], TOKEN in cookie["value"]) == (True, "Strict", False)
    assert page.evaluate("document.cookie") == ""
    # Another page of the same browser, and a restarted api, know the session.
    page.reload()
    expect(page.locator("#workers")).to_contain_text("worker 0")
    service.kill_one("api")
    service.wait_ready()
    page.reload()
    expect(page.locator("#standing")).to_have_text("all well")
    picture(page, "empty")
    page.get_by_role("button", name="Log out").click()
    expect(page.get_by_label("Operator token")).to_be_visible()
    page.reload()
    expect(page.get_by_label("Operator token")).to_be_visible()


def test_a_session_that_ends_leads_back_to_where_one_was(page: Any, service: Service) -> None:
    log_in(page)
    page.get_by_role("link", name="Jobs").click()
    expect(page.get_by_role("heading", name="Jobs")).to_be_visible()
    page.context.clear_cookies()
    expect(page.get_by_role("alert")).to_contain_text("The session has ended")
    page.get_by_label("Operator token").fill(TOKEN)
    page.get_by_role("button", name="Log in").click()
    expect(page.get_by_role("heading", name="Jobs")).to_be_visible()


def test_a_job_is_found_and_its_log_lives(page: Any, service: Service, origin: OriginProcess) -> None:
    job_id = post(service, [*good(origin, 60, "live"), {"id": "gone", "url": f"{origin.base_url}/status/404"}], crawl_id="crawl-7")
    post(service, good(origin, 1, "other"), crawl_id="crawl-8")
    log_in(page)
    page.get_by_role("link", name="Jobs").click()
    page.get_by_label("Crawl").fill("crawl-7")
    page.get_by_role("button", name="Search").click()
    rows = page.locator("#job-list tbody tr")
    expect(rows).to_have_count(1)
    page.get_by_role("link", name=job_id).click()
    # Lines come while it runs, and the settled one last.
    log = page.get_by_label("Log lines")
    expect(log).to_contain_text("accepted")
    expect(page.locator("#log-state")).to_contain_text("live")
    picture(page, "job-running")
    expect(log).to_contain_text("DOWNLOAD_HTTP_4XX")
    expect(page.locator("#log-state")).to_contain_text("ended")
    expect(log.locator("li").last).to_contain_text("settled")
    expect(page.locator("h1 .pill")).to_have_text("partial")
    # Its resources by state, and one of them whole.
    page.get_by_role("button", name="failed 1").click()
    resources = page.locator("#resources")
    expect(resources.locator("tbody tr")).to_have_count(1)
    expect(resources).to_contain_text("DOWNLOAD_HTTP_4XX")
    resources.get_by_role("button", name="gone").press("Enter")
    expect(resources.locator("pre")).to_contain_text('"http_status": 404')
    picture(page, "job-settled")
    with page.expect_popup() as receipt:
        page.get_by_role("link", name="Receipt").click()
    expect(receipt.value.locator("body")).to_contain_text('"holds":true')
    # A job's id leads to it.
    page.get_by_role("link", name="Jobs").click()
    page.get_by_label("Job id").fill(job_id)
    page.get_by_label("Job id").press("Enter")
    expect(page.locator("#job-id")).to_have_text(job_id)
    page.go_back()
    page.get_by_label("Status").select_option("failed")
    expect(page.locator("#job-list")).to_contain_text("No job matches.")


def test_a_job_is_cancelled(page: Any, service: Service, origin: OriginProcess) -> None:
    job_id = post(service, good(origin, 900, "cancelled"))
    log_in(page)
    page.goto(f"/#/jobs/{job_id}")
    page.get_by_role("button", name="Cancel…").click()
    page.get_by_role("button", name="Keep it").click()
    page.get_by_role("button", name="Cancel…").click()
    page.get_by_role("button", name="Cancel the job").click()
    expect(page.locator("h1 .pill")).to_have_text("cancelled")
    assert service.http.job(job_id)["status"] == "cancelled"


def test_dead_letters_are_replayed_after_a_look(page: Any, service: Service, origin: OriginProcess) -> None:
    bad = [{"id": f"x{index}", "url": f"{origin.base_url}/status/410?of={index}"} for index in range(3)]
    job_id = post(service, bad)
    service.http.await_job(job_id, 30, describe=service.dump)
    log_in(page)
    page.get_by_role("link", name="Dead letters").click()
    page.get_by_label("Job id").fill(job_id)
    page.get_by_role("button", name="Filter").click()
    entries = page.locator("#entries tbody tr")
    expect(entries).to_have_count(3)
    expect(page.locator("#groups")).to_contain_text("DOWNLOAD_HTTP_4XX")
    picture(page, "dead-letters")
    entries.first.get_by_role("link", name="DOWNLOAD_HTTP_4XX").click()
    expect(page.locator("main")).to_contain_text("Every outcome of this resource")
    expect(page.locator(".log")).to_contain_text("410")
    picture(page, "dead-letter")
    page.go_back()
    page.get_by_role("button", name="Replay these…").click()
    dialog = page.get_by_role("dialog")
    act = dialog.get_by_role("button", name="Replay", exact=True)
    expect(act).to_be_disabled()
    dialog.get_by_text("Change them on the way").click()
    dialog.get_by_label("In URLs replace").fill("/status/410")
    dialog.get_by_label("by", exact=True).fill("/bytes/99")
    dialog.get_by_role("button", name="Dry run").click()
    expect(dialog.get_by_role("status")).to_have_text("3 dead letters would be put back to work.")
    assert service.http.job(job_id)["resource_failed"] == 3, "a dry run changes nothing"
    picture(page, "replay")
    # Whatever is changed has to be looked at again.
    dialog.get_by_label("Headers to set").fill("Host: evil")
    expect(dialog.get_by_role("button", name="Replay 3")).to_be_disabled()
    dialog.get_by_role("button", name="Dry run").click()
    expect(dialog.get_by_role("alert")).to_contain_text("INVALID_PAYLOAD")
    dialog.get_by_label("Headers to set").fill("Referer: http://page.example/")
    dialog.get_by_role("button", name="Dry run").click()
    dialog.get_by_role("button", name="Replay 3").click()
    expect(page.get_by_role("status").filter(has_text="put back")).to_have_text("3 dead letters were put back to work.")
    assert service.http.await_job(job_id, 30, describe=service.dump)["resource_completed"] == 3


def test_dead_letters_are_purged_after_a_look(page: Any, service: Service, origin: OriginProcess) -> None:
    job_id = post(service, [{"id": "x", "url": f"{origin.base_url}/status/410?purge"}])
    service.http.await_job(job_id, 30, describe=service.dump)
    log_in(page)
    page.goto(f"/#/dead-letters?job={job_id}")
    page.get_by_role("button", name="Purge these…").click()
    page.get_by_role("button", name="Dry run").click()
    page.get_by_role("button", name="Purge 1").click()
    expect(page.locator("#entries")).to_contain_text("No dead letter matches.")


def test_texts_of_strangers_stay_texts(page: Any, service: Service, origin: OriginProcess) -> None:
    url = f"{origin.base_url}/status/404?q={HOSTILE.replace(' ', '%20')}"
    job_id = post(service, [{"id": HOSTILE, "url": url}], tenant=HOSTILE, crawl_id=HOSTILE, priority=HOSTILE)
    service.http.await_job(job_id, 30, describe=service.dump)
    log_in(page)
    expect(page.locator("#jobs")).to_contain_text(HOSTILE)
    page.goto(f"/#/jobs/{job_id}")
    expect(page.locator("main")).to_contain_text(HOSTILE)
    expect(page.get_by_label("Log lines")).to_contain_text("settled")
    page.locator("#resources").get_by_role("button", name="img").click()
    expect(page.locator("#resources pre")).to_contain_text("onerror")
    page.goto(f"/#/dead-letters?job={job_id}")
    page.locator("#entries").get_by_role("link", name="DOWNLOAD_HTTP_4XX").click()
    expect(page.locator("main")).to_contain_text(HOSTILE)
    # Whoever is sent a link is not harmed by it either.
    for place in (
        f"jobs/{HOSTILE}",
        f"dead-letters/{HOSTILE}",
        f"dead-letters?code={HOSTILE}",
        f"jobs?tenant={HOSTILE}",
        HOSTILE,
        "%",
        "jobs/%E0%A4%A",
    ):
        page.goto("/")
        page.evaluate("place => { location.hash = '#/' + place }", place)
        expect(page.locator("#standing")).to_have_text("all well")
    assert page.locator("main img").count() == 0


def test_a_page_of_another_site_changes_nothing(page: Any, service: Service, origin: OriginProcess) -> None:
    job_id = post(service, good(origin, 400, "foreign"))
    log_in(page)
    expect(page.locator("#standing")).to_have_text("all well")
    # The same machine by another name is another site for cookies, another port is another origin of the same one.
    for site in (f"http://localhost:{service.port}", origin.base_url):
        other = page.context.new_page()
        other.goto(f"{site}/health/live" if "localhost" in site else f"{site}/status/404")
        for way in ("no-cors", "cors"):
            options = f"{{method: 'POST', mode: '{way}', credentials: 'include'}}"
            other.evaluate(f"() => fetch('{service.url}/operators/jobs/{job_id}/cancel', {options}).then(() => 1, () => 0)")
        other.close()
    assert service.http.job(job_id)["resource_cancelled"] == 0


def test_what_is_wrong_is_said_and_passes(page: Any, service: Service) -> None:
    log_in(page)
    expect(page.locator("#standing")).to_have_text("all well")
    with frozen(service.a_process("hub")):
        expect(page.locator("#standing")).not_to_have_text("all well", timeout=60_000)
        expect(page.locator("#alerts")).to_contain_text("hub")
        picture(page, "hub-away")
    expect(page.locator("#standing")).to_have_text("all well", timeout=60_000)


def test_it_is_used_with_the_keyboard_alone_and_on_a_small_screen(page: Any, service: Service) -> None:
    page.set_viewport_size({"width": 360, "height": 740})
    log_in(page)
    expect(page.locator("#standing")).to_have_text("all well")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "the page is wider than the screen"
    picture(page, "narrow")
    page.reload()
    expect(page.locator("#standing")).to_have_text("all well")
    seen = []
    for _ in range(8):
        page.keyboard.press("Tab")
        seen.append(page.evaluate("document.activeElement.textContent"))
    assert seen[:2] == ["Skip to content", "FetchBox"]
    assert {"Overview", "Jobs", "Dead letters", "Log out"} <= set(seen)
    page.emulate_media(color_scheme="dark")
    back = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.emulate_media(color_scheme="light")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != back
