"""GET /v1/jobs/{id}, authorised and with history, against the bare route of `plain_api`.

python benchmarks/get_job.py [--json]        requests a second, ours / the bare one's
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from harness import compare, tell
from pair import BODY, Client, pair

ROUNDS, EACH = 60, 25


def main() -> None:
    """Read one job of each by turns."""
    with tempfile.TemporaryDirectory(prefix="stoplab-bench-") as folder, pair(Path(folder)) as both:
        ours, plain = (one.ask("POST", "/v1/jobs", BODY)["id"] for one in (both.ours, both.plain))
        shown = both.ours.ask("GET", f"/v1/jobs/{ours}")
        assert len(shown["status"]["history"]) == 1
        result = compare(
            "get_job",
            lambda: read(both.plain, plain),
            lambda: read(both.ours, ours),
            ROUNDS,
            floor=0.5,
        )
    tell("get_job", [result])


def read(client: Client, job_id: str) -> None:
    """One job, some times."""
    client.hang_up()
    for _ in range(EACH):
        client.ask("GET", f"/v1/jobs/{job_id}")


if __name__ == "__main__":
    main()
