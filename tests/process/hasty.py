"""`fetchbox up` with a supervisor in a hurry, for tests that kill every second: `hasty.py CONFIG`.

Only the pause before a start is shorter than usual, so that a thousand deaths take minutes; everything else is what `fetchbox up` does.
"""

from __future__ import annotations

import sys
from pathlib import Path

from setproctitle import setproctitle

from fetchbox import telemetry
from fetchbox.config import load
from fetchbox.supervisor import Policy, Supervisor, plan

HASTY = Path(__file__)
POLICY = Policy(first_delay=0.02, longest_delay=0.05)


def main() -> int:
    """Runs until a signal ends it."""
    setproctitle("fetchbox: supervisor")
    config = load(path=Path(sys.argv[1]), env={})
    telemetry.configure(config.telemetry.log_format, config.telemetry.log_level, "supervisor")
    return Supervisor(config, plan(config, "up"), policy=POLICY).run()


if __name__ == "__main__":
    sys.exit(main())
