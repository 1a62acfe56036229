"""Writing WebDataset shards: plain tar files, equal bytes for equal samples."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from stoplab_trainers.data.cache import replacing


def write_shard(path: Path, samples: Iterable[tuple[str, Mapping[str, bytes]]]) -> int:
    """Write (key, {extension: bytes}) as one tar, atomically; return the number of samples.

    Nothing of the machine goes in: time 0, owner 0, as webdataset's readers expect. The format is
    USTAR, with a PAX header where a name is too long for it or not ASCII.
    """
    count = 0
    with (
        replacing(path) as file,
        tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar,
    ):
        for key, members in samples:
            count += 1
            for extension, data in members.items():
                member = tarfile.TarInfo(f"{key}.{extension}")
                member.size = len(data)
                member.mode = 0o644
                tar.addfile(member, io.BytesIO(data))
    return count
