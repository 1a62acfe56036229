"""What this process knows and must not show: values of secrets, taken out of what it writes."""

from __future__ import annotations

import logging

SHORTEST = 6
"""Shorter values are no secrets, and would be found in any text."""

_hidden: dict[str, str] = {}
"""The word that is shown for each value."""


def hide(value: str, word: str) -> None:
    """From now on `redacted` shows ``word`` for ``value``."""
    if len(value) >= SHORTEST:
        _hidden[value] = word


def redacted(text: str) -> str:
    """A text without hidden values; a longer one goes before one that is a part of it."""
    for value in sorted(_hidden, key=len, reverse=True):
        text = text.replace(value, _hidden[value])
    return text


class RedactingFormatter(logging.Formatter):
    """A formatter of log lines, their tracebacks too, without hidden values."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        return redacted(super().format(record))
