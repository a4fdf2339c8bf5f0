"""Credentials taken out of text that is about to be shown or logged: whatever a library says of a URL may hold some."""

from __future__ import annotations

import re
from urllib.parse import unquote, urlsplit

# A password in a URL, to the last @ before a blank or a quote: it may hold an @ itself.
_PASSWORD = re.compile(r"""(?<=://)([^/?#\s'":@]*):[^\s'"]*@""")
_PARAMETER = re.compile(r"""(?i)([?&](?:\w*(?:token|password|secret|key))=)[^&#\s'"]+""")
_BEARER = re.compile(r"(?i)(\bbearer\s+)[\w.~+/=-]+")


def without_credentials(text: str, url: str = "") -> str:
    """`text` with `***` in place of passwords in URLs, of secret query parameters and of bearer tokens.

    The password of `url`, which must parse, is taken out wherever else it stands, too, quoted or not.
    """
    text = _BEARER.sub(r"\1***", _PARAMETER.sub(r"\1***", _PASSWORD.sub(r"\1:***@", text)))
    password = urlsplit(url).password or ""
    for secret in filter(None, (password, unquote(password))):
        text = text.replace(secret, "***")
    return text
