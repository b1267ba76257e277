"""Whether the curl transport can be used here, and what the libcurl that is installed lacks."""

from __future__ import annotations

import functools
import importlib
from typing import Any

SCHEMES = ("ftp", "ftps", "sftp")
"""What the curl transport speaks beside http and https."""
MISSING = "transport = \"curl\" needs pycurl; install it with: pip install 'fetchbox[curl]'"


@functools.cache
def _pycurl() -> Any | None:
    try:
        return importlib.import_module("pycurl")
    except ImportError:
        return None


def problem(auth_type: str | None = None) -> str | None:
    """Why a job type cannot use the transport, in one line; None when it can."""
    pycurl = _pycurl()
    if pycurl is None:
        return MISSING
    version = pycurl.version_info()
    if auth_type == "ntlm" and not version[4] & pycurl.VERSION_NTLM:
        return f"libcurl {version[1]} of this pycurl knows no NTLM; build pycurl with one that does: pip install --no-binary pycurl pycurl"
    return None


def schemes() -> tuple[str, ...]:
    """The schemes beside http and https; all of them where pycurl is not installed, because another host may have it."""
    pycurl = _pycurl()
    return SCHEMES if pycurl is None else tuple(scheme for scheme in SCHEMES if scheme in pycurl.version_info()[8])


def lacking() -> tuple[str, ...]:
    """The schemes that libcurl does not know."""
    return tuple(scheme for scheme in SCHEMES if scheme not in schemes())
