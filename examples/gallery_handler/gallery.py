"""A handler for picture galleries: drops thumbnails, fetches the full size as a visitor of the page would, names objects by their place in
the gallery, keeps films in a bucket of their own and sends some hosts through a proxy pool.

Configure it (see fetchbox.toml beside this file) and post with `X-Fetchbox-Job-Type: gallery`.
"""

from __future__ import annotations

import hashlib
import hmac
import mimetypes
import time
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import urlsplit

from fetchbox import DownloadTask, Handler, HandlerError, Manifest, Resource

SIGNATURE_SECONDS = 300


def kind_of(resource: Resource) -> str:
    """`image`, `video`, …: from the manifest's own words, else from the URL's ending; empty when neither says."""
    declared = resource.tags.get("content_type") or mimetypes.guess_type(urlsplit(resource.url).path)[0] or ""
    return declared.partition("/")[0]


class GalleryHandler(Handler):
    """Options, all of them optional.

    - `max_pictures` (200): how many of a gallery are fetched.
    - `buckets`: bucket by kind of file, `{video = "films"}`; the kind is what comes before the slash of its type. Others go where the
      configuration says.
    - `proxies`: proxy pool by host, `{"pictures.example" = "residential"}`.
    - `signing_key`: requests are signed with it.
    """

    def __init__(self, options: dict[str, Any]) -> None:
        super().__init__(options)
        self.max_pictures = int(options.get("max_pictures", 200))
        self.buckets: dict[str, str] = dict(options.get("buckets", {}))
        self.proxies: dict[str, str] = dict(options.get("proxies", {}))
        self.signing_key = str(options.get("signing_key", "")).encode()

    async def prepare_manifest(self, manifest: Manifest) -> Manifest:
        """Keeps the pictures, in the order of the gallery."""
        pictures = [resource for resource in manifest.resources if resource.tags.get("kind") != "thumbnail"]
        if not pictures:
            raise HandlerError("this page has thumbnails only", code="HANDLER_NO_PICTURES")
        manifest.resources = sorted(pictures, key=lambda resource: int(resource.tags.get("position", "0")))[: self.max_pictures]
        return manifest

    async def build_tasks(self, manifest: Manifest) -> AsyncIterator[DownloadTask]:
        """One task a picture, under the gallery's own prefix."""
        gallery = str(manifest.metadata.get("gallery", manifest.job_id))
        page = manifest.metadata.get("page")
        for position, resource in enumerate(manifest.resources):
            task = DownloadTask.of(
                resource,
                url=resource.url.replace("/preview/", "/full/"),
                key=f"galleries/{hashlib.sha256(gallery.encode()).hexdigest()[:16]}/{position:04d}",
                metadata={"gallery": gallery, "position": str(position)},
                bucket=self.buckets.get(kind_of(resource)),
                proxy=self.proxies.get(urlsplit(resource.url).hostname or ""),
            )
            if isinstance(page, str):
                task.headers.setdefault("referer", page)
            yield task

    async def before_fetch(self, task: DownloadTask) -> None:
        """Signs the request at the last moment: a signature made at ingest would be stale by now."""
        if self.signing_key:
            expires = str(int(time.time()) + SIGNATURE_SECONDS)
            digest = hmac.new(self.signing_key, f"{task.url}\n{expires}".encode(), hashlib.sha256)
            task.headers["x-expires"] = expires
            task.headers["x-signature"] = digest.hexdigest()

    async def finalize_job(self, summary: Any) -> None:
        """Called in a worker, at least once, when nothing is pending any more."""
        print(f"gallery {summary['job_id']}: {summary['resource_completed']} of {summary['resource_total']} pictures")
