"""The names of objects that the library and `fetchbox get` store: from the URL or the id alone, so that the same input finds them again.

    ab/photo~ab12cd34ef56a7b8.jpg        without an id: the URL's last segment and a hash of the whole URL
    ab/cat-7.jpg                         with the id "cat-7"

Two hexadecimal digits of the hash spread the files over 256 directories. Nothing an origin sends has any influence.
"""

from __future__ import annotations

from urllib.parse import quote

from fetchbox import _core


def object_key(url: str, name: str | None) -> str:
    """The key for a URL, or for the id that the input gives it. Only letters, digits, `.`, `_`, `~` and `-`, never a leading dot."""
    # Arguments of a command line may hold bytes that are no text.
    return _core.object_key(url.encode("utf-8", "surrogatepass"), None if name is None else name.encode("utf-8", "surrogatepass"))


def as_unicode(url: str) -> str:
    """The URL with surrogates (bytes that were no UTF-8, half a character) percent-encoded, so that it can be sent and printed."""
    try:
        url.encode()
    except UnicodeEncodeError:
        try:
            raw = url.encode("utf-8", "surrogateescape")
        except UnicodeEncodeError:
            raw = url.encode("utf-8", "surrogatepass")
        return quote(raw, safe="%/:?#[]@!$&'()*+,;=")
    return url
