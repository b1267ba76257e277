"""Scrapy's FilesPipeline on the local file system: `python FILE URL_LIST OUT CONCURRENCY`."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from typing import Any

import scrapy
from scrapy.crawler import CrawlerProcess

BATCH = 1000


class Files(scrapy.Spider):  # type: ignore[misc]  # it is of no type where Scrapy is not installed
    """Yields items of URLs; the pipeline downloads them."""

    name = "files"

    def __init__(self, url_list: str = "", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.url_list = url_list

    async def start(self) -> AsyncIterator[dict[str, list[str]]]:
        """The items; no page is fetched."""
        with open(self.url_list, encoding="utf-8") as lines:  # noqa: ASYNC230 - before anything runs
            urls = [line.strip() for line in lines if line.strip()]
        for at in range(0, len(urls), BATCH):
            yield {"file_urls": urls[at : at + BATCH]}


def main(url_list: str, out: str, concurrency: str) -> int:
    """Downloads every URL of the list; returns how many failed."""
    process = CrawlerProcess(
        {
            "ITEM_PIPELINES": {"scrapy.pipelines.files.FilesPipeline": 1},
            "FILES_STORE": out,
            "CONCURRENT_REQUESTS": int(concurrency),
            "CONCURRENT_REQUESTS_PER_DOMAIN": int(concurrency),
            "DOWNLOAD_DELAY": 0,
            "DOWNLOAD_MAXSIZE": 0,
            "DOWNLOAD_WARNSIZE": 0,
            "DOWNLOAD_TIMEOUT": 1800,
            "ROBOTSTXT_OBEY": False,
            "HTTPCACHE_ENABLED": False,
            "TELNETCONSOLE_ENABLED": False,
            "LOG_LEVEL": "ERROR",
        }
    )
    crawler = process.create_crawler(Files)
    process.crawl(crawler, url_list=url_list)
    process.start()
    assert crawler.stats is not None
    # An exception of the downloader is no failure: it is tried again.
    files = sum(crawler.stats.get_value(f"file_status_count/{status}", 0) for status in ("downloaded", "uptodate"))
    with open(url_list, encoding="utf-8") as lines:
        missing = sum(bool(line.strip()) for line in lines) - int(files)
    if missing:
        print(f"{missing} files are missing: {crawler.stats.get_stats()}", file=sys.stderr)
    return missing


if __name__ == "__main__":
    sys.exit(1 if main(*sys.argv[1:4]) else 0)
