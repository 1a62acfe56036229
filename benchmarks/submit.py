"""POST /v1/jobs against the bare route of `plain_api`: jobs a second, ours / the bare one's.

python benchmarks/submit.py [--json]
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from harness import compare, tell
from pair import BODY, Client, pair

ROUNDS, EACH = 40, 10


def main() -> None:
    """Submit by turns."""
    with tempfile.TemporaryDirectory(prefix="stoplab-bench-") as folder, pair(Path(folder)) as both:
        result = compare(
            "submit", lambda: submit(both.plain), lambda: submit(both.ours), ROUNDS, floor=0.4
        )
    tell("submit", [result])


def submit(client: Client) -> None:
    """Some jobs, one after another."""
    client.hang_up()
    for _ in range(EACH):
        client.ask("POST", "/v1/jobs", BODY)


if __name__ == "__main__":
    main()
