"""The API against its own document: schemathesis asks a running service what the document allows and what it forbids.

`FETCHBOX_TEST_EXAMPLES=700` makes it long: some 15,000 requests.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from fetchbox.testing import free_port
from tests.process.origins import OriginProcess
from tests.process.service import Service, clean_environment

EXAMPLES: Final = int(os.environ.get("FETCHBOX_TEST_EXAMPLES", "12"))
"""Random requests of each kind for each operation, beside those that follow from the document."""
TOKEN, OPERATOR = "a-tenants-token", "the-operators-token"


def overrides() -> dict[str, Any]:
    """Whatever URL is posted, nothing outside is asked: the only way leads through a proxy that is not there."""
    return {
        "server": {"api_tokens": {TOKEN: "acme"}, "operator_token": OPERATOR, "rate_limit": 0},
        "proxy": {"pools": {"nowhere": {"endpoints": [f"http://127.0.0.1:{free_port()}"], "remote_dns": True, "backoff_base": "1ms"}}},
        "job_types": {"default": {"proxy": {"primary": "nowhere"}, "fetch": {"max_attempts": 1}}, "direct": {}},
        "fetch": {"allow_networks": ["127.0.0.1/32"], "max_attempts": 1},
    }


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    """A service with a job that was stored, one that failed and one that was cancelled half-way."""
    headers = {"authorization": f"Bearer {TOKEN}", "x-fetchbox-operator-token": OPERATOR}
    with OriginProcess(tmp_path) as origin, Service(tmp_path / "service", overrides(), headers=headers).start() as running:
        job_id = ""
        for targets in (["/bytes/10", "/bytes/11"], ["/status/404", "/bytes/12"], ["/bytes/13", "/delay/60/bytes/10"]):
            body = {
                "manifest_version": "v1",
                "metadata": {},
                "resources": [{"url": origin.base_url + target} for target in targets],
                "attributes": {"crawl_id": "crawl"},
            }
            answer = running.http.http.post("/jobs", json=body, headers={"x-fetchbox-job-type": "direct"})
            assert answer.status_code == 202, answer.text
            job_id = answer.json()["job_id"]
        running.http.http.post(f"/jobs/{job_id}/cancel")
        yield running
        running.end()


@pytest.mark.slow
@pytest.mark.timeout(120 + 3 * EXAMPLES)
def test_the_service_does_what_its_document_says(service: Service, tmp_path: Path) -> None:
    pytest.importorskip("schemathesis", reason="schemathesis asks the questions")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "schemathesis.cli", "run", f"{service.url}/openapi.json"),
            # What a schema allows may still be refused with a documented 400: a cursor of another list, a pool that is not configured.
            *("--exclude-checks", "positive_data_acceptance"),
            # Its only proxy is away, so it says 503, as documented; any 5xx counts as a fault there. test_api_random.py asks it.
            *("--exclude-path", "/operators/health"),
            *("--phases", "examples,coverage,fuzzing", "--max-examples", str(EXAMPLES), "--seed", "8"),
            *("--generation-deterministic", "--request-timeout", "20", "--no-color"),
            *("-H", f"Authorization: Bearer {TOKEN}", "-H", f"X-Fetchbox-Operator-Token: {OPERATOR}"),
        ],
        capture_output=True,
        text=True,
        env=clean_environment() | {"SCHEMATHESIS_HOOKS": "tests.process.document_hooks"},
        cwd=Path(__file__).parents[2],
        check=False,
    )
    told = done.stdout + done.stderr
    print(told[-3000:])
    assert done.returncode == 0, told
    assert re.search(r"\d+ generated", told), told
    log = service.log_path.read_text()
    assert "Traceback" not in log, log[-3000:]
