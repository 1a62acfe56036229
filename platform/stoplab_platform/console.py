"""What an entrypoint writes to its console: plain lines, which the supervisor keeps."""

from __future__ import annotations

import logging
import sys


def log_to_stdout() -> None:
    """Send stoplab's log lines to standard output, each with its time."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    root = logging.getLogger("stoplab")
    root.setLevel(logging.INFO)
    root.addHandler(handler)
