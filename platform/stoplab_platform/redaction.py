"""Takes secrets out of text that is written down: what looks like one, and those we know."""

from __future__ import annotations

import re
from collections.abc import Iterable

HIDDEN = "[redacted]"
SHORTEST = 8
"""A known secret of fewer characters would be found in innocent words."""

# Each keeps what says which secret it was.
_PATTERNS = (
    # A header, as text or as a mapping prints it: everything behind its name.
    (r"(?i)(authorization[\"']?\s*[:=,]\s*(?:b?[\"'])?)(?:\w+\s+)?[^\s\"',}]+", rf"\1{HIDDEN}"),
    (r"(?i)\b(bearer\s+)[\w.~+/=-]{12,}", rf"\1{HIDDEN}"),
    (r"\bstl_[\w-]{8,}", HIDDEN),
    # A URL's user and password; a password may hold a raw @.
    (r"(://)[^/\s\"'?#]*@", rf"\1{HIDDEN}@"),
    (
        r"(?i)((?:password|passwd|secret|token|api_?-?key|access_?-?key)[\"']?\s*[=:]\s*[\"']?)"
        r"(?!//)[^\s\"'&,;})]+",
        rf"\1{HIDDEN}",
    ),
)


class Redactor:
    """Replaces secrets in text by a mark."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        known = sorted({text for text in secrets if len(text) >= SHORTEST}, key=len, reverse=True)
        exact = [("|".join(map(re.escape, known)), HIDDEN)] if known else []
        self._rules = [(re.compile(sign), mark) for sign, mark in (*exact, *_PATTERNS)]

    def __call__(self, text: str) -> str:
        """The text without secrets."""
        for sign, mark in self._rules:
            text = sign.sub(mark, text)
        return text
