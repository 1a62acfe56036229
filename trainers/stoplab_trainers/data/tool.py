"""What the commands on shards share: a progress bar, one document, exit codes."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from stoplab_platform.errors import DataError, SettingsError, StoplabError
from stoplab_platform.exits import Exit


def run(
    as_json: bool, command: Callable[[], dict[str, Any]], spelled: Callable[[dict[str, Any]], str]
) -> Exit:
    """Print what a command tells; its exit code: `problems` in the document are a failure."""
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(message)s")
    try:
        told = command()
    except (StoplabError, OSError) as error:
        if as_json:
            print(json.dumps({"error": str(error)}, indent=1))
        print(error, file=sys.stderr)
        return Exit.BAD_INPUT if isinstance(error, DataError | SettingsError) else Exit.FAILED
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return Exit.FAILED
    print(json.dumps(told, indent=1, ensure_ascii=False) if as_json else spelled(told))
    return Exit.FAILED if told.get("problems") else Exit.OK


@contextmanager
def bar(what: str, total: int, *, quiet: bool) -> Iterator[Callable[[int], None]]:
    """A progress bar on stderr; call what it gives with how much more is done, from any thread."""
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=quiet) as progress:
        task = progress.add_task(what, total=total)
        yield lambda done: progress.advance(task, done)
