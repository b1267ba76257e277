"""`fetchbox.fetch` into a bucket: `engine_s3.py URL_LIST ENDPOINT BUCKET CONCURRENCY`."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from fetchbox.library import batches


def main(url_list: str, endpoint: str, bucket: str, concurrency: int) -> int:
    """Downloads every URL of the list; returns how many are not in the bucket."""
    urls = Path(url_list).read_text(encoding="utf-8").split()
    config = {
        "fetch": {"allow_networks": ["127.0.0.0/8"], "per_host_concurrency": concurrency},
        "storage": {
            "endpoint": endpoint,
            "region": "us-east-1",
            "allow_http": True,
            "access_key_id": os.environ["AWS_ACCESS_KEY_ID"],
            "secret_access_key": os.environ["AWS_SECRET_ACCESS_KEY"],
        },
    }
    stored = sum(batch.stored()[0] for batch in batches(urls, store=f"s3://{bucket}", config=config, concurrency=concurrency))
    return len(urls) - stored


if __name__ == "__main__":
    sys.exit(1 if main(*sys.argv[1:4], int(sys.argv[4])) else 0)
