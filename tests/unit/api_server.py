"""The ingress on a real socket, over the fakes: `python -m tests.unit.api_server LISTEN_FD CONFIG_JSON`. SIGTERM drains it.

FETCHBOX_TEST_BODY_SECONDS and FETCHBOX_TEST_HEAD_SECONDS shorten the patience with slow clients.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from typing import Any

import uvloop
from tests.unit.api_fakes import Ingress

from fetchbox.api import body, serve
from fetchbox.api.front import Front
from fetchbox.api.serve import listening_socket, make_server, run_front
from fetchbox.config import Config
from fetchbox.control import Control


async def main(descriptor: int, sections: dict[str, Any]) -> int:
    body.GRACE_SECONDS = float(os.environ.get("FETCHBOX_TEST_BODY_SECONDS", body.GRACE_SECONDS))
    serve.HEADER_SECONDS = float(os.environ.get("FETCHBOX_TEST_HEAD_SECONDS", serve.HEADER_SECONDS))
    control = Control("api", 0, listen_fd=descriptor)
    ingress = Ingress(**sections)
    service = ingress.app.state.service
    service.draining = control.draining
    config = Config.model_validate({"data_dir": "/tmp/fetchbox-test", **sections})
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, control.drain, config.drain_timeout)
    started = time.perf_counter()
    code = await run_front(Front(make_server, ingress.app, listening_socket(config, control), config, 1.0), control)
    print(f"served for {time.perf_counter() - started:.1f} s", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(uvloop.run(main(int(sys.argv[1]), json.loads(sys.argv[2]))))
