"""With a mechanism and without it, for tests of what a promise hangs on."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

both_ways = pytest.mark.parametrize(
    "out", [pytest.param(False, id="holds"), pytest.param(True, id="taken-out")]
)
"""A test runs with the mechanism, and without it."""


@contextmanager
def fails(out: bool) -> Iterator[None]:
    """The block is the check: it must fail where the mechanism is taken out, and only there."""
    if out:
        with pytest.raises(AssertionError) as caught:
            yield
        print("without it:", str(caught.value).partition("\n")[0])
    else:
        yield


@contextmanager
def supervised(code: str, patch: str = "") -> Iterator[subprocess.Popen[bytes]]:
    """A supervisor of attempt 1 of job `j_1` that runs ``code``; ``patch`` is done to it first.

    It is killed at the end of the block.
    """
    start = f"import sys; from stoplab_platform import child, contact, supervisor\n{patch}\n"
    words = ["-c", f"{start}sys.exit(supervisor.main())", "--job", "j_1", "--attempt", "1"]
    command = [sys.executable, *words, "--", sys.executable, "-c", code]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.kill()
        process.wait()
