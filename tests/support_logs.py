"""Log lines as servers write them, for tests that read them."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from stoplab_platform import redaction
from stoplab_platform.logs import Structured


@contextmanager
def hiding(*secrets: str) -> Iterator[None]:
    """Values that are hidden for as long as the block lasts."""
    before = dict(redaction._hidden)
    for secret in secrets:
        redaction.hide(secret)
    try:
        yield
    finally:
        redaction._hidden.clear()
        redaction._hidden.update(before)


@contextmanager
def logging_to(
    kind: type[Structured], *secrets: str, logger_name: str = "stoplab.test", **fixed: Any
) -> Iterator[io.StringIO]:
    """A logger's lines in one format."""
    text = io.StringIO()
    handler = logging.StreamHandler(text)
    handler.setFormatter(kind(fixed))
    logger = logging.getLogger(logger_name)
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        with hiding(*secrets):
            yield text
    finally:
        logger.removeHandler(handler)
        logger.propagate = True
