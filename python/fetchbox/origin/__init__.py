"""The bundled web server: good pages and every hostile behaviour, for demos, tests and benches (`fetchbox origin`).

    async with Origin() as origin:
        origin.url("/bytes/10240?seed=1")        # its bytes are content(1, 10240)

The paths are described at `/` and in docs/hostile-origin.md.
"""

from fetchbox.origin.pattern import content, content_sha256
from fetchbox.origin.ports import BlackHole, free_port
from fetchbox.origin.server import Origin

__all__ = ["BlackHole", "Origin", "content", "content_sha256", "free_port"]
