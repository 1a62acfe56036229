"""The lines of a spool, as a kill or a full disk may have left them."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator
from typing import Any

log = logging.getLogger("stoplab.tracking")


def whole_lines(file: Iterable[bytes]) -> Iterator[tuple[dict[str, Any] | None, int]]:
    """Each line and its bytes, but for a last one that is being written, or was cut off.

    A broken one is None: the others hold without it.
    """
    for raw in file:
        if not raw.endswith(b"\n"):
            return
        yield _read(raw), len(raw)


def _read(raw: bytes) -> dict[str, Any] | None:
    try:
        line = json.loads(raw)
    except ValueError:
        line = None
    if isinstance(line, dict) and "verb" in line:
        return line
    log.warning("a broken line of a spool is passed over: %r", raw[:200])
    return None
