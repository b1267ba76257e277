"""The names of objects that the library and `fetchbox get` store: from the URL or the id alone, so that the same input finds them again.

    ab/photo~ab12cd34ef56a7b8.jpg        without an id: the URL's last segment and a hash of the whole URL
    ab/cat-7.jpg                         with the id "cat-7"

Two hexadecimal digits of the hash spread the files over 256 directories. Nothing an origin sends has any influence.
"""

from __future__ import annotations

import hashlib
import re
from urllib.parse import unquote, urlsplit

_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")
_EXTENSION = re.compile(r"\.([A-Za-z0-9]{1,10})$")
_MAX_STEM = 80
_MAX_ID = 200


def object_key(url: str, name: str | None) -> str:
    """The key for a URL, or for the id that the input gives it. Only letters, digits, `.`, `_`, `~` and `-`, never a leading dot."""
    digest = hashlib.sha256((url if name is None else name).encode("utf-8", "surrogatepass")).hexdigest()
    try:
        last = unquote(urlsplit(url).path).rsplit("/", 1)[-1]
    except ValueError:
        last = ""
    found = _EXTENSION.search(last)
    extension = f".{found[1].lower()}" if found and found.start() > 0 else ""
    if name is None:
        stem = _clean(last[: found.start()] if found and extension else last)[:_MAX_STEM] or "index"
        return f"{digest[:2]}/{stem}~{digest[:16]}{extension}"
    stem = _clean(name)
    # An id that had to be changed or cut might meet another one; its hash keeps them apart. A `~` can only come from here.
    if stem != name or len(stem) > _MAX_ID:
        stem = f"{stem[:_MAX_STEM]}~{digest[:16]}"
    if extension and not stem.lower().endswith(extension):
        stem += extension
    return f"{digest[:2]}/{stem}"


def _clean(text: str) -> str:
    return _UNSAFE.sub("_", text).lstrip(".")
