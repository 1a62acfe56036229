"""Places where tests keep checkpoints: a folder, and a bucket behind a proxy that may fail."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

import pytest
import torch

from stoplab_platform import remote
from stoplab_platform.secret_store import Secrets
from stoplab_platform.settings import Settings
from stoplab_trainers import checkpoint
from stoplab_trainers.stores.base import Store
from stoplab_trainers.stores.local import Local
from stoplab_trainers.stores.objects import Objects
from support_faults import Faults, faulty
from support_s3 import BUCKET, OPTIONS, bucket

ANSWER_S = 2  # that a client waits for an answer
SECRET = "secret://bucket"


class Kept(Protocol):
    """A store and what lies in it, behind its back."""

    store: Store

    def files(self) -> list[str]:
        """All, by path below it."""

    def read(self, file: str) -> bytes:
        """One of them."""

    def put(self, file: str, data: bytes) -> None:
        """Write it anew."""

    def drop(self, file: str) -> None:
        """Take it away."""


class Folder:
    """A folder."""

    def __init__(self, root: Path) -> None:
        self.root, self.store = root, Local(root)

    def files(self) -> list[str]:
        found = (path for path in self.root.rglob("*") if path.is_file())
        return sorted(str(path.relative_to(self.root)) for path in found)

    def read(self, file: str) -> bytes:
        return (self.root / file).read_bytes()

    def put(self, file: str, data: bytes) -> None:
        (self.root / file).write_bytes(data)

    def drop(self, file: str) -> None:
        (self.root / file).unlink()


class Bucket:
    """A prefix of the S3 server's bucket, which the store sees through the proxy."""

    def __init__(self, port: int, proxy: Faults, cache: Path) -> None:
        self.prefix = f"{BUCKET}/{uuid4().hex[:8]}"
        self.store = Objects(f"s3://{self.prefix}", options(proxy), cache)
        self._files = bucket(port)

    def files(self) -> list[str]:
        return sorted(p.removeprefix(f"{self.prefix}/") for p in self._files.find(self.prefix))

    def read(self, file: str) -> bytes:
        data: bytes = self._files.cat_file(f"{self.prefix}/{file}")
        return data

    def put(self, file: str, data: bytes) -> None:
        self._files.pipe_file(f"{self.prefix}/{file}", data)

    def drop(self, file: str) -> None:
        self._files.rm_file(f"{self.prefix}/{file}")


def options(proxy: Faults, answer_s: float = ANSWER_S) -> dict[str, Any]:
    """What a client of the S3 server behind the proxy needs to know."""
    limits = {"read_timeout": answer_s, "connect_timeout": 5, "retries": {"max_attempts": 0}}
    return {**OPTIONS, "endpoint_url": proxy.url, "config_kwargs": limits}


@contextmanager
def failing(s3: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[Faults]:
    """A proxy before the server, of which the secret `bucket` knows; we ask again at once."""
    monkeypatch.setattr(remote, "FIRST_S", 0.001)
    with faulty(s3) as proxy:
        Secrets(Settings()).set("bucket", json.dumps(options(proxy)))
        yield proxy


@dataclass(frozen=True)
class States:
    """Saves what tests save."""

    where: checkpoint.Where

    def save(self, step: int, keep: int = 9, **parts: Any) -> checkpoint.Saved:
        """The checkpoint of a step: a tensor of it."""
        weights = {"w": torch.full((1000,), float(step))}
        state = {"model": weights, "target": weights, "optimizer": {"lr": 0.1}, **parts}
        return checkpoint.save(
            self.where, step=step, tensors=state, identity={"run": "abc"}, keep=keep
        )
