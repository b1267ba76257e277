"""One request by curl: its options, and what it tells the engine as it goes."""

from __future__ import annotations

import functools
import os
import re
import socket
import ssl
import time
from email.utils import formatdate
from pathlib import Path
from typing import Any

import msgspec
import pycurl

from fetchbox._core import CurlCall
from fetchbox.curl.codes import Ended, judge

MAX_HEADS = 128 << 10
"""Bytes of heads that one request may bring: interim ones and those of a handshake among them."""
BUFFER = 256 << 10
NO_LIMIT = 86_400
"""Seconds: the engine's own limits end what takes too long."""
FULL, GONE = 1, 2
PROTOCOLS = {
    "http": pycurl.PROTO_HTTP,
    "https": pycurl.PROTO_HTTPS,
    "ftp": pycurl.PROTO_FTP,
    "ftps": pycurl.PROTO_FTPS,
    "sftp": pycurl.PROTO_SFTP,
}
AUTH = {"basic": pycurl.HTTPAUTH_BASIC, "digest": pycurl.HTTPAUTH_DIGEST, "ntlm": pycurl.HTTPAUTH_NTLM}
SUPPRESS_CONNECT_HEADERS = 265
"""CURLOPT_SUPPRESS_CONNECT_HEADERS, for which pycurl has no name."""
_STATUS = re.compile(rb"HTTP/([0-9.]+) +([0-9]{3})\b")
_SIZE = re.compile(rb"213 +([0-9]+)\s*$")
_MOMENT = re.compile(rb"213 +((?:19|20)[0-9]{12})(?:\.[0-9]+)?\s*$")


class Login(msgspec.Struct, frozen=True):
    kind: str
    username: str
    password: str


class Proxy(msgspec.Struct, frozen=True):
    url: str
    username: str | None
    password: str | None


class Order(msgspec.Struct, frozen=True):
    """What the engine wants; rust/engine/src/curl.rs says more."""

    url: str
    headers: list[tuple[str, str]]
    resolve: list[str]
    connect_to: str | None
    login: Login | None
    proxy: Proxy | None
    connect_timeout: float
    http2: bool
    verify_tls: bool
    ca_file: str | None
    known_hosts: str | None

    @property
    def scheme(self) -> str:
        return self.url.partition(":")[0].lower()

    @property
    def is_http(self) -> bool:
        return self.scheme in ("http", "https")


_decoder = msgspec.json.Decoder(Order)


def order_of(call: CurlCall) -> Order:
    """A call's order."""
    return _decoder.decode(call.order())


class Request:
    """Sets a handle up for a call, and is the handle's callbacks."""

    def __init__(self, handle: Any, call: CurlCall, order: Order) -> None:
        self.handle = handle
        self.call = call
        self.order = order
        self.scheme = order.scheme
        self.paused = False
        self.dropped = False
        self._is_http = order.is_http
        login = self.order.login
        # Whoever is asked to show credentials answers twice or thrice, and only the last answer counts.
        self._asked_again = (401,) if self._is_http and login is not None else ()
        self._head_told = False
        self._status = 0
        self._http2 = False
        self._fields: list[tuple[bytes, bytes]] = []
        self._heads = 0
        self._reply = b""
        self._size: int | None = None
        self._moment: float | None = None
        self._connected = False
        self._failure: tuple[str, str] | None = None
        self._set_up()

    def _set_up(self) -> None:
        handle, order = self.handle, self.order
        options: dict[int, Any] = {
            pycurl.URL: order.url,
            pycurl.PROTOCOLS: PROTOCOLS[self.scheme],
            pycurl.NOSIGNAL: 1,
            pycurl.FOLLOWLOCATION: 0,
            pycurl.PATH_AS_IS: 1,
            pycurl.HTTP09_ALLOWED: 0,
            pycurl.BUFFERSIZE: BUFFER,
            pycurl.CONNECTTIMEOUT_MS: max(int(order.connect_timeout * 1000), 1),
            pycurl.FTP_RESPONSE_TIMEOUT: NO_LIMIT,
            # The environment's proxies and .netrc are nobody's business here.
            pycurl.PROXY: "",
            pycurl.NOPROXY: "",
            pycurl.NETRC: pycurl.NETRC_IGNORED,
            pycurl.SSL_VERIFYPEER: int(order.verify_tls),
            pycurl.SSL_VERIFYHOST: 2 if order.verify_tls else 0,
            pycurl.OPENSOCKETFUNCTION: self._open,
            pycurl.PREREQFUNCTION: self._ready,
            pycurl.HEADERFUNCTION: self._header,
            pycurl.WRITEFUNCTION: self._write,
        }
        if order.verify_tls:
            options |= _roots(order.ca_file)
        if order.resolve:
            options[pycurl.RESOLVE] = order.resolve
        if order.connect_to is not None:
            options[pycurl.CONNECT_TO] = [order.connect_to]
        if self._is_http:
            options[pycurl.HTTPHEADER] = [_line(name, value) for name, value in order.headers]
            options[pycurl.HTTP_VERSION] = pycurl.CURL_HTTP_VERSION_2TLS if order.http2 else pycurl.CURL_HTTP_VERSION_1_1
        elif self.scheme == "sftp":
            options |= self._host_keys()
        else:
            options |= {pycurl.OPT_FILETIME: 1, pycurl.FTP_SKIP_PASV_IP: 1}
        if not self._is_http:
            options |= {pycurl.NOPROGRESS: 0, pycurl.XFERINFOFUNCTION: self._progress}
        if order.login is not None:
            options |= {pycurl.USERNAME: order.login.username, pycurl.PASSWORD: order.login.password}
            options[pycurl.HTTPAUTH] = AUTH[order.login.kind]
        if order.proxy is not None:
            options |= {pycurl.PROXY: order.proxy.url, pycurl.HTTPPROXYTUNNEL: 1, SUPPRESS_CONNECT_HEADERS: 1}
            options |= {pycurl.PROXY_SSL_VERIFYPEER: int(order.verify_tls), pycurl.PROXY_SSL_VERIFYHOST: 2 if order.verify_tls else 0}
            if order.proxy.username is not None:
                options |= {pycurl.PROXYUSERNAME: order.proxy.username, pycurl.PROXYPASSWORD: order.proxy.password or ""}
        for option, value in options.items():
            handle.setopt(option, value)

    def _host_keys(self) -> dict[int, Any]:
        # No keys and no agent of whoever runs this.
        options: dict[int, Any] = {pycurl.SSH_AUTH_TYPES: pycurl.SSH_AUTH_PASSWORD | pycurl.SSH_AUTH_KEYBOARD}
        if self.order.verify_tls:
            options[pycurl.SSH_KNOWNHOSTS] = self.order.known_hosts or os.devnull
            options[pycurl.SSH_KEYFUNCTION] = self._host_key
        else:
            options[pycurl.SSH_KEYFUNCTION] = lambda known, found, match: pycurl.KHSTAT_FINE
        return options

    def _host_key(self, known: Any, found: Any, match: int) -> int:
        if match == pycurl.KHMATCH_OK:
            return int(pycurl.KHSTAT_FINE)
        if match == pycurl.KHMATCH_MISMATCH:
            message = "the host's key is another than the one in known_hosts"
        else:
            message = "the host's key is not in known_hosts; see known_hosts of the job type"
        self._failure = ("DOWNLOAD_TLS", message)
        return int(pycurl.KHSTAT_REJECT)

    def _open(self, purpose: int, address: tuple[int, int, int, tuple[Any, ...]]) -> Any:
        family, kind, protocol, where = address
        if family not in (socket.AF_INET, socket.AF_INET6) or not self.call.permits(str(where[0]).partition("%")[0], where[1]):
            return pycurl.SOCKET_BAD
        try:
            return _Lent(socket.socket(family, kind, protocol))
        except OSError as error:
            self._failure = ("SYSTEM_RESOURCES", f"no socket: {error.strerror}")
            return pycurl.SOCKET_BAD

    def _ready(self, *_: Any) -> int:
        self._connected = True
        self.call.connected()
        return int(pycurl.PREREQFUNC_OK)

    def _progress(self, total: float, *_: Any) -> int:
        # curl waits for the last reply of an FTP server without giving the loop back; it asks here once a second.
        if self._size is None and total > 0:
            self._size = int(total)
        return int(self.dropped)

    def _header(self, line: bytes) -> int | None:
        if not self._is_http:
            self._ftp_line(line)
            return None
        if self._head_told:
            return None  # trailers
        self._heads += len(line)
        if self._heads > MAX_HEADS:
            self._failure = ("DOWNLOAD_BAD_RESPONSE", f"more than {MAX_HEADS} bytes of headers")
            return -1
        if status := _STATUS.match(line):
            self._http2 = status[1].startswith(b"2")
            self._status = int(status[2])
            self._fields.clear()
        elif not (field := line.rstrip(b"\r\n")):
            if (self._status >= 200 or self._status == 101) and self._status not in self._asked_again:
                self._tell_head()
        elif line[:1] in b" \t" and self._fields:
            name, value = self._fields[-1]
            self._fields[-1] = (name, value + b" " + field.strip())
        else:
            name, _, value = field.partition(b":")
            self._fields.append((name, value.strip()))
        return None

    def _ftp_line(self, line: bytes) -> None:
        self._reply = line
        if moment := _MOMENT.match(line):
            self._moment = _utc(moment[1].decode())
        elif size := _SIZE.match(line):
            self._size = int(size[1])

    def _tell_head(self) -> None:
        self._head_told = True
        if not self._is_http:
            # A file server's answer has no head: this is what it would say.
            self._status = 200
            if self._size is not None:
                self._fields.append((b"content-length", str(self._size).encode()))
            if self._moment is not None:
                self._fields.append((b"last-modified", formatdate(self._moment, usegmt=True).encode()))
        self.call.head(self._status, self._http2, self._fields)

    def _write(self, data: bytes) -> int | None:
        if not self._head_told:
            self._tell_head()
        taken = self.call.push(data)
        if taken == FULL:
            self.paused = True
            return int(pycurl.WRITEFUNC_PAUSE)
        return 0 if taken == GONE else None

    def resume(self) -> None:
        """Lets the body come on."""
        if self.paused:
            self.paused = False
            self.handle.pause(pycurl.PAUSE_CONT)

    def done(self) -> None:
        """It ended well."""
        if not self._head_told and (self._status or not self._is_http):
            self._tell_head()
        self.call.end()

    def failed(self, number: int, text: str) -> None:
        """It ended with this error of curl's."""
        if self._failure is not None:
            self.call.end(*self._failure)
            return
        handle = self.handle
        # A last answer that was held back, and whose body broke off.
        if self._status in self._asked_again and not self._head_told:
            self._tell_head()
        ended = Ended(
            number,
            text,
            scheme=self.scheme,
            reply=int(handle.getinfo(pycurl.RESPONSE_CODE)),
            reply_text=self._reply.decode("utf-8", "replace").strip(),
            proxied=self.order.proxy is not None,
            tunnel=int(handle.getinfo(pycurl.HTTP_CONNECTCODE)),
            connected=self._connected,
            os_errno=int(handle.getinfo(pycurl.OS_ERRNO)),
        )
        self.call.end(*judge(ended))


class _Lent:
    """A socket for pycurl, which takes a duplicate and drops this one."""

    def __init__(self, made: socket.socket) -> None:
        self._made = made

    def fileno(self) -> int:
        return self._made.fileno()

    def __del__(self) -> None:
        self._made.close()


def _line(name: str, value: str) -> bytes:
    # "name:" would take a header away.
    return (f"{name}: {value}" if value.strip() else f"{name};").encode()


def _utc(digits: str) -> float | None:
    import calendar

    try:
        return float(calendar.timegm(time.strptime(digits, "%Y%m%d%H%M%S")))
    except ValueError:
        return None


@functools.lru_cache(maxsize=64)
def _roots(ca_file: str | None) -> dict[int, Any]:
    """The system's roots, which the libcurl of a wheel does not find by itself, and the job type's own."""
    paths = ssl.get_default_verify_paths()
    if not ca_file:
        return {pycurl.CAINFO: paths.cafile} if paths.cafile else {}
    roots = Path(ca_file).read_bytes()
    if paths.cafile:
        roots = Path(paths.cafile).read_bytes() + b"\n" + roots
    return {pycurl.CAINFO_BLOB: roots}
