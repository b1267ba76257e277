"""A supervisor over fake roles, in a process of its own: `supervise.py CONFIG_JSON ROLES_JSON POLICY_JSON`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from fetchbox import telemetry
from fetchbox.config import load
from fetchbox.errors import FetchboxError
from fetchbox.supervisor import Policy, Supervisor

FAKE = Path(__file__).with_name("fake_role.py")


def main() -> int:
    """Like `fetchbox up`, with the fake children."""
    overrides, roles, policy = (json.loads(text) for text in sys.argv[1:4])
    telemetry.configure("json", "debug", "supervisor")
    config = load(env={}, overrides=overrides)
    supervisor = Supervisor(
        config,
        roles,
        command=lambda role, index: [sys.executable, str(FAKE), role, str(index)],
        policy=Policy(**policy),
        reload=lambda: load(env={}, overrides={**overrides, "server": {**overrides["server"], "rate_limit": 7}}),
    )
    try:
        return supervisor.run()
    except FetchboxError as error:
        print(f"fetchbox: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
