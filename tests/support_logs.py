"""Log lines as servers write them, for tests that read them."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from stoplab_platform.logs import Structured
from stoplab_platform.redaction import Redactor


@contextmanager
def logging_to(
    kind: type[Structured], *secrets: str, logger_name: str = "stoplab.test", **fixed: Any
) -> Iterator[io.StringIO]:
    """A logger's lines in one format."""
    text = io.StringIO()
    handler = logging.StreamHandler(text)
    handler.setFormatter(kind(Redactor(secrets), fixed))
    logger = logging.getLogger(logger_name)
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield text
    finally:
        logger.removeHandler(handler)
        logger.propagate = True
