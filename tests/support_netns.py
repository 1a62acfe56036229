"""A network of its own on this machine: a namespace behind a cable that can be pulled out."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import ip_address

import pytest


@dataclass(frozen=True)
class Cable:
    """This machine at one end, a namespace at the other."""

    namespace: str
    near: str
    """Interface on this side; its address is `near_ip`."""
    far: str
    """Interface in the namespace; its address is `far_ip`."""
    near_ip: str
    far_ip: str

    @property
    def inside(self) -> list[str]:
        """What runs a command in the namespace."""
        return ["ip", "netns", "exec", self.namespace]

    def pull(self) -> None:
        """No packet passes any more, and nobody is told: no connection is reset."""
        _ip("link", "set", self.near, "down")

    def plug(self) -> None:
        """Packets pass again."""
        _ip("link", "set", self.near, "up")


@contextmanager
def cable() -> Iterator[Cable]:
    """Lays it, and takes all of it away; the test is skipped where that is not permitted."""
    if shutil.which("ip") is None:
        pytest.skip("network namespaces need the command `ip`")
    # One of the links of four addresses in the range for tests of networks (RFC 2544).
    number = os.getpid() % 2**14
    link = ip_address("198.18.0.0") + 4 * number
    laid = Cable(f"sl{number}", f"sln{number}", f"slf{number}", str(link + 1), str(link + 2))
    try:
        _ip("netns", "add", laid.namespace)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no network namespace may be made here: {error.stderr.strip()}")
    try:
        _ip("link", "add", laid.near, "type", "veth", "peer", "name", laid.far)
        _ip("link", "set", laid.far, "netns", laid.namespace)
        _ip("addr", "add", f"{laid.near_ip}/30", "dev", laid.near)
        _ip("link", "set", laid.near, "up")
        for words in (
            ("addr", "add", f"{laid.far_ip}/30", "dev", laid.far),
            ("link", "set", laid.far, "up"),
            ("link", "set", "lo", "up"),
        ):
            _ip("-n", laid.namespace, *words)
        yield laid
    finally:
        _ip("netns", "del", laid.namespace)  # the cable goes with it


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)
