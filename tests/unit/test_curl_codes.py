"""What curl's errors become: the table, the document that shows it, and the cases in which the number does not tell."""

from __future__ import annotations

import errno
import re
from collections.abc import Mapping
from pathlib import Path

import pycurl
import pytest

from fetchbox._core import failure_codes
from fetchbox.config import Config, curl, load
from fetchbox.curl.codes import CODES, Ended, judge
from fetchbox.errors import ConfigError

DOCUMENT = (Path(__file__).parents[2] / "docs/transports.md").read_text(encoding="utf-8")
NEVER = {
    *(2, 4, 41, 43, 45, 48, 49),  # how we call it
    *(
        10,
        12,
        20,
        22,
        25,
        26,
        29,
        30,
        32,
        33,
        34,
        36,
        37,
        38,
        39,
        40,
        44,
        46,
        47,
        50,
        51,
        57,
        62,
    ),  # other protocols, uploads, names out of use
    *(23, 42),  # ours: the engine has ended it
    *(24, 31, 63, 65, 68, 69, 70, 71, 72, 73, 74, 75, 76, 81, 84, 85, 86, 87, 88, 89),
}
"""Numbers that no transfer of ours ends with; if one did, that would be a defect."""


def test_the_document_shows_the_table() -> None:
    rows = {int(number): code for number, code in re.findall(r"^\| (\d+) \| [^|]+ \| `(\w+)` \|$", DOCUMENT, re.MULTILINE)}
    assert rows == CODES


def test_every_code_is_one_of_ours_and_every_error_is_thought_of() -> None:
    known = {name for name, _, _ in failure_codes()}
    assert set(CODES.values()) <= known
    assert known >= set(re.findall(r"`((?:DOWNLOAD|AUTH|SYSTEM)_[A-Z0-9_]+)`", DOCUMENT))
    numbers = {getattr(pycurl, name) for name in dir(pycurl) if name.startswith("E_") and not name.startswith("E_MULTI")}
    assert {number for number in numbers if 0 < number < 1000} - CODES.keys() - NEVER == set()


@pytest.mark.parametrize(
    ("ended", "code"),
    [
        (Ended(7, "refused", os_errno=errno.ECONNREFUSED), "DOWNLOAD_CONNECT_FAILED"),
        (Ended(7, "timed out", os_errno=errno.ETIMEDOUT), "DOWNLOAD_CONNECT_TIMEOUT"),
        (Ended(7, "no descriptors", os_errno=errno.EMFILE), "SYSTEM_RESOURCES"),
        (Ended(28, "Connection timed out"), "DOWNLOAD_CONNECT_TIMEOUT"),
        (Ended(28, "Operation timed out", connected=True), "DOWNLOAD_TIMEOUT"),
        (Ended(35, "TLS connect error: unexpected eof while reading"), "DOWNLOAD_RESET"),
        (Ended(35, "TLS connect error: wrong version number"), "DOWNLOAD_TLS"),
        (Ended(8, "Invalid Content-Length: value"), "DOWNLOAD_BAD_FRAMING"),
        (Ended(8, "Header without colon"), "DOWNLOAD_BAD_RESPONSE"),
        (Ended(56, "chunk hex-length char not a hex digit: 0x78"), "DOWNLOAD_BAD_FRAMING"),
        (Ended(56, "Recv failure: Connection reset by peer", connected=True), "DOWNLOAD_RESET"),
        (Ended(78, "", scheme="ftp", reply=550, reply_text="550 gone"), "DOWNLOAD_HTTP_4XX"),
        (Ended(19, "", scheme="ftp", reply=450, reply_text="450 busy"), "DOWNLOAD_HTTP_5XX"),
        (Ended(8, "", scheme="ftp", reply=421, reply_text="421 too many users"), "DOWNLOAD_HTTP_5XX"),
        (Ended(67, "", scheme="ftps", reply=530, reply_text="530 no"), "AUTH_ORIGIN_REFUSED"),
        (Ended(67, "", scheme="ftp", reply=421, reply_text="421 later"), "DOWNLOAD_HTTP_5XX"),
        (Ended(67, "", scheme="sftp"), "AUTH_ORIGIN_REFUSED"),
        (Ended(18, "", scheme="ftp", reply=426), "DOWNLOAD_TRUNCATED"),
        (Ended(56, "CONNECT tunnel failed, response 407", proxied=True, tunnel=407), "AUTH_PROXY_REFUSED"),
        (Ended(56, "CONNECT tunnel failed, response 403", proxied=True, tunnel=403), "DOWNLOAD_PROXY_FAILED"),
        (Ended(7, "", proxied=True), "DOWNLOAD_PROXY_FAILED"),
        (Ended(97, "", proxied=True), "DOWNLOAD_PROXY_FAILED"),
        (Ended(56, "reset", proxied=True, tunnel=200, connected=True), "DOWNLOAD_RESET"),
        (Ended(4242, "from the future"), "SYSTEM_INTERNAL"),
    ],
)
def test_table_of_ends(ended: Ended, code: str) -> None:
    assert judge(ended)[0] == code


def test_the_message_is_the_servers_own_where_it_gave_one() -> None:
    assert judge(Ended(19, "RETR response: 450", scheme="ftp", reply=450, reply_text="450 busy"))[1] == "the server answered 450 busy"
    assert judge(Ended(18, "9 bytes missing"))[1] == "curl 18: 9 bytes missing"


def problems(tree: Mapping[str, object]) -> dict[str, str]:
    try:
        assert isinstance(load(env={}, overrides=tree), Config)
    except ConfigError as error:
        return {problem.path: problem.message for problem in error.problems}
    return {}


def test_what_config_check_says_of_the_transport(monkeypatch: pytest.MonkeyPatch) -> None:
    login = {"username": "u", "password": "p"}
    tree = {"job_types": {"a": {"transport": "curl", "auth": {**login, "type": "ntlm"}}, "b": {"auth": {**login, "type": "digest"}}}}
    found = problems(tree)
    has_ntlm = bool(pycurl.version_info()[4] & pycurl.VERSION_NTLM)
    assert ("job_types.a.auth.type" in found) == (not has_ntlm)
    assert "NTLM" in found.get("job_types.a.auth.type", "NTLM")
    assert found["job_types.b.auth.type"] == 'digest needs transport = "curl"'
    assert "no file" in problems({"job_types": {"a": {"transport": "curl", "known_hosts": "/nowhere/at/all"}}})["job_types.a.known_hosts"]
    monkeypatch.setattr(curl, "_pycurl", lambda: None)
    assert problems({"job_types": {"a": {"transport": "curl"}}}) == {"job_types.a.transport": curl.MISSING}
    assert problems({"job_types": {"a": {"transport": "native"}}}) == {}
    assert curl.schemes() == ("ftp", "ftps", "sftp")
