"""A real Ray cluster on one machine: a head that computes nothing, and raylets for its nodes."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from support_mlflow import free_port
from support_ray import RayHead, ray_head
from support_store import wait_for

JOINS_S = 240.0
TRIES = 3
STARTED = "Ray runtime started."  # of `ray start`


@dataclass(frozen=True)
class Raylet:
    """One node: `ray start`, and below it the raylet, its agents and its workers."""

    name: str
    started: subprocess.Popen[bytes]
    process: psutil.Process
    how: dict[str, Any]
    """The arguments of its `begin`."""

    @property
    def family(self) -> list[psutil.Process]:
        """All processes of the node that live."""
        try:
            return [self.process, *self.process.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    @property
    def raylet(self) -> psutil.Process:
        """The one that the node stands and falls with."""
        (found,) = [one for one in self.family if one.name() == "raylet"]
        return found

    def kill(self) -> int:
        """kill -9 of the raylet alone: the rest has to notice; its number."""
        raylet = self.raylet
        raylet.kill()
        return raylet.pid

    def end(self) -> None:
        """End what is left of the node."""
        family = self.family
        for process in family:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(family, timeout=30)
        self.started.wait(30)


@dataclass
class Raylets:
    """A cluster: nodes join and leave."""

    head: RayHead
    folder: Path
    nodes: list[Raylet] = field(default_factory=list)
    everyone: list[Raylet] = field(default_factory=list)

    def begin(
        self,
        *,
        num_cpus: int = 1,
        under: Sequence[str] = (),
        options: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
    ) -> Raylet:
        """Start a node and do not wait for it; ``under``: a command that runs the command."""
        name = f"node-{len(self.everyone) + 1}"
        ports = ("dashboard-agent-listen-port", "dashboard-agent-grpc-port",
                 "metrics-export-port", "runtime-env-agent-port")  # fmt: skip
        command = [
            *under, Path(sys.executable).with_name("ray"), "start", "--block",
            f"--address={self.head.gcs}", f"--num-cpus={num_cpus}",
            *(f"--{port}={free_port()}" for port in ports),
            # Several raylets on a machine would give out the same ports one after another.
            "--min-worker-port=0", "--max-worker-port=0",
            "--object-store-memory=80000000", "--disable-usage-stats", *options,
        ]  # fmt: skip
        with (self.folder / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                list(map(str, command)), stdout=log, stderr=log, start_new_session=True,
                env={**self.head.env, **(env or {})},
            )  # fmt: skip
        how = {"num_cpus": num_cpus, "under": under, "options": options, "env": env}
        node = Raylet(name, process, psutil.Process(process.pid), how)
        self.nodes.append(node)
        self.everyone.append(node)
        return node

    def joined(self, node: Raylet) -> Raylet:
        """Wait until a node is a part of the cluster; it, or the one begun in its place.

        `ray start` gives up after 30 s, which a busy machine may take.
        """
        for _ in range(TRIES):
            log = self.folder / f"{node.name}.log"
            wait_for(lambda: _started(log) or node.started.poll() is not None, "a node", JOINS_S)  # noqa: B023
            if _started(log):
                return node
            self.nodes.remove(node)
            node = self.begin(**node.how)
        raise AssertionError(f"{TRIES} nodes did not start: {log.read_text(errors='replace')}")

    def add(self, num_cpus: int) -> Raylet:
        """One more node, a part of the cluster."""
        return self.joined(self.begin(num_cpus=num_cpus))

    def drain(self, node_id: str, deadline_s: int) -> None:
        """Tell Ray that a node will be taken away."""
        command = [
            str(Path(sys.executable).with_name("ray")), "drain-node",
            f"--address={self.head.gcs}", f"--node-id={node_id}",
            "--reason=DRAIN_NODE_REASON_PREEMPTION", "--reason-message=preempted",
            f"--deadline-remaining-seconds={deadline_s}",
        ]  # fmt: skip
        subprocess.run(command, check=True, env=self.head.env, capture_output=True)

    def kill(self, node: Raylet) -> int:
        """Lose a node, for good."""
        self.nodes.remove(node)
        return node.kill()


def _started(log: Path) -> bool:
    return STARTED in log.read_text(errors="replace")


@contextmanager
def raylets(num_nodes: int = 3, *, ip: str | None = None) -> Iterator[Raylets]:
    """A head and so many nodes of one CPU; all that was started is ended by its process id."""
    with (
        tempfile.TemporaryDirectory(prefix="sln", dir="/tmp", ignore_cleanup_errors=True) as folder,
        ray_head(num_cpus=0, ip=ip) as head,
    ):
        cluster = Raylets(head, Path(folder))
        try:
            for node in [cluster.begin() for _ in range(num_nodes)]:
                cluster.joined(node)
            yield cluster
        finally:
            for node in cluster.everyone:
                node.end()
