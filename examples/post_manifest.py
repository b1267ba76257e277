"""Post a manifest to a running service, wait, and read what became of every resource.

fetchbox up &
python examples/post_manifest.py http://127.0.0.1:8080 https://www.python.org/static/img/python-logo.png
"""

from __future__ import annotations

import hashlib
import sys

import fetchbox


def main(service: str, *urls: str) -> str:
    """Returns the state in which the job ended."""
    manifest = {
        "manifest_version": "v1",
        "metadata": {"found_on": "https://www.python.org/"},
        "resources": [{"url": url, "id": f"file-{number}"} for number, url in enumerate(urls)],
    }
    with fetchbox.Client(service) as client:
        # With a key of its own a crawler may post again after a crash and gets the same job.
        job = client.submit(manifest, idempotency_key=hashlib.sha256("\n".join(urls).encode()).hexdigest())
        done = client.wait(job.job_id, timeout=300)
        print(f"{done.job_id} {done.status}: {done.resource_completed} stored, {done.resource_failed} failed")
        for resource in client.resources(job.job_id):
            print(resource.id, resource.state, resource.code or "", resource.size, resource.sha256, resource.storage_url)
    return done.status


if __name__ == "__main__":
    sys.exit(0 if main(*sys.argv[1:]) == "completed" else 1)
