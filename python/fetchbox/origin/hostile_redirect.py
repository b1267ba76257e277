"""Redirects to where no client should go. Allow the origin's own network (`--allow-network 127.0.0.0/8`) to get as far as the redirect."""

from __future__ import annotations

from fetchbox.origin.http import Exchange, RequestError
from fetchbox.origin.ports import free_port
from fetchbox.origin.routes import route

_TARGETS = {
    "private": "http://10.0.0.1/secret",
    "metadata": "http://169.254.169.254/latest/meta-data/",
    "mapped": "http://[::ffff:10.0.0.1]/",
    "decimal": "http://167772161/",
    "file": "file:///etc/passwd",
    "gopher": "gopher://127.0.0.1:70/1",
    "ftp": "ftp://127.0.0.1/file",
    "nxdomain": "http://no-such-host.invalid/",
    "credentials": "http://user:password@10.0.0.1/",
    "nowhere": "http://",
}


@route(
    "/hostile/redirect/{kind}",
    example="/hostile/redirect/private",
    outcome="DOWNLOAD_BLOCKED_ADDRESS; DOWNLOAD_BAD_SCHEME for file, gopher, ftp; DOWNLOAD_DNS_NXDOMAIN; DOWNLOAD_BAD_URL for nowhere",
)
async def redirect(x: Exchange) -> None:
    """Redirects to a private address (private, metadata, mapped, decimal), to another scheme (file, gopher, ftp), or to nxdomain,
    credentials (a URL with a password) or nowhere (no URL at all)."""
    target = _TARGETS.get(x.text("kind"))
    if target is None:
        raise RequestError(404, f"kinds are {', '.join(_TARGETS)}")
    await x.respond(302, headers=[("Location", target)])


@route("/hostile/redirect-without-location", outcome="DOWNLOAD_HTTP_3XX")
async def redirect_without_location(x: Exchange) -> None:
    """302 without saying where to."""
    await x.respond(302)


@route("/hostile/redirect-cross-origin", outcome="stored; the target saw no Authorization, Cookie or custom header")
async def redirect_cross_origin(x: Exchange) -> None:
    """Redirects to /echo of the same server under its other name, 127.0.0.1 or localhost: what is stored shows which headers went along."""
    host = x.request.headers.get("host", "")
    other = "127.0.0.1" if host.startswith("localhost") else "localhost"
    await x.respond(302, headers=[("Location", f"{x.origin.scheme}://{other}:{x.origin.port}/echo")])


@route("/hostile/redirect-other-scheme", outcome="stored; the target saw no Authorization, Cookie or custom header")
async def redirect_other_scheme(x: Exchange) -> None:
    """Redirects to /echo on the same host and port by the other scheme, https to http or back: another origin all the same. Needs `--tls`,
    under which the port answers both; without it the redirect is to /echo by the same scheme."""
    secure = x.writer.get_extra_info("ssl_object") is not None
    scheme = "http" if secure else x.origin.scheme
    host = x.request.headers.get("host", "").rpartition(":")[0] or "127.0.0.1"
    await x.respond(302, headers=[("Location", f"{scheme}://{host}:{x.origin.port}/echo")])


@route("/hostile/redirect-refused", outcome="retried, then DOWNLOAD_CONNECT_FAILED")
async def redirect_refused(x: Exchange) -> None:
    """Redirects to a port of this machine that nobody listens on."""
    await x.respond(302, headers=[("Location", f"http://127.0.0.1:{free_port()}/")])


@route("/hostile/redirect-black-hole", outcome="retried, then DOWNLOAD_CONNECT_TIMEOUT")
async def redirect_black_hole(x: Exchange) -> None:
    """Redirects to a port where SYNs get no answer."""
    await x.respond(302, headers=[("Location", f"http://127.0.0.1:{x.origin.black_hole.port}/")])


@route("/hostile/redirect-chain/{n}", example="/hostile/redirect-chain/11", outcome="DOWNLOAD_TOO_MANY_REDIRECTS above 10")
async def redirect_chain(x: Exchange) -> None:
    """`n` redirects by absolute URL, each to the other name of this server."""
    hops = x.integer("n", high=1000)
    other = "127.0.0.1" if x.request.headers.get("host", "").startswith("localhost") else "localhost"
    target = f"/hostile/redirect-chain/{hops - 1}" if hops > 1 else "/bytes/1000"
    await x.respond(302, headers=[("Location", f"{x.origin.scheme}://{other}:{x.origin.port}{target}")])
