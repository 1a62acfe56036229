"""What an entrypoint writes to its console: plain lines, which the supervisor keeps."""

from __future__ import annotations

import logging
import sys

from stoplab_platform.redaction import RedactingFormatter


def log_to_stdout() -> None:
    """Send stoplab's log lines to standard output, each with its time."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(RedactingFormatter("%(asctime)s %(message)s", "%H:%M:%S"))
    root = logging.getLogger("stoplab")
    root.setLevel(logging.INFO)
    root.addHandler(handler)
