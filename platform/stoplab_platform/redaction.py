"""Takes secrets out of text that is written down: values that we know, and what looks like one."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

HIDDEN = "[redacted]"
SHORTEST = 6
"""Shorter values are no secrets, and would be found in innocent words."""

# Each keeps what says which secret it was.
_PATTERNS = tuple(
    (re.compile(sign), mark)
    for sign, mark in (
        # A header, as text or as a mapping prints it: everything behind its name.
        (
            r"(?i)(authorization[\"']?\s*[:=,]\s*(?:b?[\"'])?)(?:\w+\s+)?[^\s\"',}]+",
            rf"\1{HIDDEN}",
        ),
        (r"(?i)\b(bearer\s+)[\w.~+/=-]{12,}", rf"\1{HIDDEN}"),
        (r"\bstl_[\w-]{8,}", HIDDEN),
        # A URL's user and password; a password may hold a raw @.
        (r"(://)[^/\s\"'?#]*@", rf"\1{HIDDEN}@"),
        # What signs a URL of S3, of Google's storage, of CloudFront, of Azure's.
        (
            r"(?i)([?&](?:x-(?:amz|goog)-)?(?:signature|credential|sig)=)[^\s\"'&:]+",
            rf"\1{HIDDEN}",
        ),
        (
            r"(?i)((?:password|passwd|secret|token|api_?-?key|access_?-?key)[\"']?\s*[=:]\s*[\"']?)"
            r"(?!//)[^\s\"'&,;})]+",
            rf"\1{HIDDEN}",
        ),
    )
)
_hidden: dict[str, str] = {}
"""The word that is shown for each value that this process knows and must not show."""


def hide(value: str, word: str = HIDDEN) -> None:
    """From now on ``word`` is shown for ``value``."""
    if len(value) >= SHORTEST:
        _hidden[value] = word


def redacted(text: str) -> str:
    """A text without hidden values; a longer one goes before one that is a part of it."""
    for value in sorted(_hidden, key=len, reverse=True):
        text = text.replace(value, _hidden[value])
    return text


def without_credentials(url: str) -> str:
    """A URL as others may see it: no user, no password."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def scrubbed(text: str) -> str:
    """A text without hidden values, nor anything that looks like a secret: for logs."""
    text = redacted(text)
    for sign, mark in _PATTERNS:
        text = sign.sub(mark, text)
    return text
