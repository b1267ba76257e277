"""What schemathesis has to know of this API that its document cannot say; loaded by `st run` through SCHEMATHESIS_HOOKS."""

from __future__ import annotations

from typing import Any

import schemathesis


@schemathesis.hook
def filter_case(context: Any, case: Any) -> bool:
    """A log that is followed has no end, by contract: nothing to wait for here."""
    follow = (case.query or {}).get("follow")
    return not (case.path.endswith("/logs") and str(follow).lower() in ("true", "1"))
