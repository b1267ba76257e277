"""A handler for picture galleries: drops thumbnails, fetches the full size, names objects by their place in the gallery.

Configure it (see fetchbox.toml beside this file) and post with `X-Fetchbox-Job-Type: gallery`.
"""

from __future__ import annotations

import hashlib
import hmac
import time
from collections.abc import AsyncIterator
from typing import Any

from fetchbox import DownloadTask, Handler, HandlerError, Manifest

SIGNATURE_SECONDS = 300


class GalleryHandler(Handler):
    """Options: `max_pictures` (200), `signing_key` (none: requests are not signed)."""

    def __init__(self, options: dict[str, Any]) -> None:
        super().__init__(options)
        self.max_pictures = int(options.get("max_pictures", 200))
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
        for position, resource in enumerate(manifest.resources):
            yield DownloadTask.of(
                resource,
                url=resource.url.replace("/preview/", "/full/"),
                key=f"galleries/{hashlib.sha256(gallery.encode()).hexdigest()[:16]}/{position:04d}",
                metadata={"gallery": gallery, "position": str(position)},
            )

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
