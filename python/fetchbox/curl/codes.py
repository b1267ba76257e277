"""What curl's errors are to FetchBox: one table, and the few cases in which the number alone does not tell. Pure."""

from __future__ import annotations

import errno
import re
from dataclasses import dataclass

CODES: dict[int, str] = {
    1: "DOWNLOAD_BAD_RESPONSE",  # an answer that is not HTTP
    3: "DOWNLOAD_BAD_URL",
    5: "DOWNLOAD_PROXY_FAILED",
    6: "DOWNLOAD_DNS_NXDOMAIN",
    7: "DOWNLOAD_CONNECT_FAILED",
    8: "DOWNLOAD_BAD_RESPONSE",
    9: "DOWNLOAD_HTTP_4XX",
    11: "DOWNLOAD_BAD_RESPONSE",
    13: "DOWNLOAD_BAD_RESPONSE",
    14: "DOWNLOAD_BAD_RESPONSE",
    15: "DOWNLOAD_CONNECT_FAILED",
    16: "DOWNLOAD_RESET",
    17: "DOWNLOAD_BAD_RESPONSE",
    18: "DOWNLOAD_TRUNCATED",
    19: "DOWNLOAD_HTTP_4XX",
    21: "DOWNLOAD_BAD_RESPONSE",
    27: "SYSTEM_RESOURCES",
    28: "DOWNLOAD_CONNECT_TIMEOUT",
    35: "DOWNLOAD_TLS",
    52: "DOWNLOAD_RESET",
    53: "DOWNLOAD_TLS",
    54: "DOWNLOAD_TLS",
    55: "DOWNLOAD_RESET",
    56: "DOWNLOAD_RESET",
    58: "DOWNLOAD_TLS",
    59: "DOWNLOAD_TLS",
    60: "DOWNLOAD_TLS",
    61: "DOWNLOAD_BAD_FRAMING",
    64: "DOWNLOAD_TLS",
    66: "DOWNLOAD_TLS",
    67: "AUTH_ORIGIN_REFUSED",
    77: "DOWNLOAD_TLS",
    78: "DOWNLOAD_HTTP_4XX",
    79: "DOWNLOAD_RESET",
    80: "DOWNLOAD_TLS",
    82: "DOWNLOAD_TLS",
    83: "DOWNLOAD_TLS",
    90: "DOWNLOAD_TLS",
    91: "DOWNLOAD_TLS",
    92: "DOWNLOAD_RESET",
    94: "AUTH_ORIGIN_REFUSED",
    97: "DOWNLOAD_PROXY_FAILED",
    100: "DOWNLOAD_BAD_RESPONSE",
}
"""By the number of curl's error. What is not here is a defect, ours or curl's: SYSTEM_INTERNAL."""

FTP_REPLIED = frozenset({8, 9, 11, 13, 14, 15, 17, 19, 21, 67, 78})
"""Errors of an FTP server's reply, which says more than curl does."""
BEFORE_TUNNEL = frozenset({5, 7, 28, 35, 52, 55, 56, 60, 97})
"""What a proxy is to blame for as long as it has not opened the way."""
MACHINE = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS})
_BROKE = re.compile(r"\beof\b|reset|syscall|broken pipe|clos", re.IGNORECASE)
_FRAMING = re.compile(r"content-length|transfer-encoding|chunk|hexadecimal", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Ended:
    """A transfer that failed. `reply` is the last status or FTP reply, `tunnel` a proxy's answer to CONNECT, 0 for none."""

    number: int
    text: str
    scheme: str = "http"
    reply: int = 0
    reply_text: str = ""
    proxied: bool = False
    tunnel: int = 0
    connected: bool = False
    os_errno: int = 0


def judge(ended: Ended) -> tuple[str, str]:
    """The failure's code and message."""
    code = _code(ended)
    if ended.scheme in ("ftp", "ftps") and ended.number in FTP_REPLIED and ended.reply >= 400:
        return code, f"the server answered {ended.reply_text or ended.reply}"
    return code, f"curl {ended.number}: {ended.text}" if ended.text else f"curl {ended.number}"


def _code(ended: Ended) -> str:
    number = ended.number
    if ended.proxied and not ended.connected:
        if ended.tunnel == 407:
            return "AUTH_PROXY_REFUSED"
        if number in BEFORE_TUNNEL:
            return "DOWNLOAD_PROXY_FAILED"
    if ended.scheme in ("ftp", "ftps") and number in FTP_REPLIED and ended.reply >= 400:
        # 4yz is transient in FTP as 5xx is in HTTP, and 5yz permanent as 4xx is.
        if ended.reply < 500:
            return "DOWNLOAD_HTTP_5XX"
        return "AUTH_ORIGIN_REFUSED" if number == 67 or ended.reply in (530, 532) else "DOWNLOAD_HTTP_4XX"
    if number in (7, 35) and ended.os_errno in MACHINE:
        return "SYSTEM_RESOURCES"
    if number == 7 and ended.os_errno == errno.ETIMEDOUT:
        return "DOWNLOAD_CONNECT_TIMEOUT"
    if number == 28 and ended.connected:
        return "DOWNLOAD_TIMEOUT"
    if number == 35 and _BROKE.search(ended.text):
        return "DOWNLOAD_RESET"
    if number in (8, 56) and _FRAMING.search(ended.text):
        return "DOWNLOAD_BAD_FRAMING"
    return CODES.get(number, "SYSTEM_INTERNAL")
