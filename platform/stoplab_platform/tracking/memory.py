"""A tracker that remembers: for tests, and for runs that nobody watches."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stoplab_platform.tracking.base import RunIdentity, Status, flatten


class MemoryTracker:
    """Keeps everything in lists and dictionaries that may be read at any time."""

    def __init__(self) -> None:
        self.identity: RunIdentity | None = None
        self.params: dict[str, str] = {}
        self.history: dict[str, list[tuple[int, float]]] = {}
        """Points (step, value) of each metric."""
        self.tagged: dict[str, str] = {}
        self.artifacts: list[tuple[str, Path]] = []
        """Folder and path of each file."""
        self.status: str = "RUNNING"

    @property
    def run_id(self) -> str | None:
        """There is no run elsewhere."""
        return None

    def start(self, identity: RunIdentity, params: Mapping[str, Any]) -> None:
        """Remember who the run is; its parameters the first time only."""
        if self.identity is None:
            self.params = flatten(params)
        self.identity = identity
        self.tagged.update(identity.as_tags())
        self.status = "RUNNING"

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Remember points that lie after the metric's last one."""
        for name, value in values.items():
            points = self.history.setdefault(name, [])
            if not points or step > points[-1][0]:
                points.append((step, float(value)))

    def tags(self, values: Mapping[str, str]) -> None:
        """Remember words."""
        self.tagged.update(values)

    def artifact(self, path: Path, folder: str = "") -> None:
        """Remember a file's place."""
        assert path.exists(), path
        self.artifacts.append((folder, path))

    def finish(self, status: Status) -> None:
        """Remember the end."""
        self.status = status

    def close(self) -> None:
        """Nothing to wait for."""
