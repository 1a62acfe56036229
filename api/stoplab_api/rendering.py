"""JSON answers that are JSON whatever a run has written into its files."""

from __future__ import annotations

import json
import math
from typing import Any

from fastapi.responses import JSONResponse


class Json(JSONResponse):
    """NaN and infinities, which JSON has no words for, become null."""

    def render(self, content: Any) -> bytes:
        """The body."""
        try:
            return _json(content)
        except ValueError:  # seldom, so that not every answer is walked through for it
            return _json(_finite(content))


def _json(content: Any) -> bytes:
    text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.encode()


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return value
