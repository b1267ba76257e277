"""The curl transport of a process that downloads."""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog

from fetchbox._core import Engine
from fetchbox.config import Config
from fetchbox.config import curl as curl_support

if TYPE_CHECKING:
    from fetchbox.curl.transport import CurlTransport

log = structlog.get_logger("fetchbox.worker")


def curl_transport(config: Config, engine: Engine) -> CurlTransport | None:
    """The curl transport on the running loop, where a job type uses it."""
    if all(kind.transport != "curl" for kind in config.job_types.values()):
        return None
    from fetchbox.curl.transport import CurlTransport

    for scheme in curl_support.lacking():
        log.warning("the libcurl of this pycurl does not know a scheme; its URLs are refused", scheme=scheme)
    transport = CurlTransport(engine)
    transport.start()
    return transport
