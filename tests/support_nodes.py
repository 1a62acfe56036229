"""More nodes for a test's Ray head: real raylets on this machine, to be killed or drained."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import psutil
import ray

from stoplab_platform.files import read_json, read_lines
from stoplab_platform.paths import RunFolder
from support_mlflow import free_port
from support_ray import RayHead, ray_head
from support_store import wait_for

RAY = str(Path(sys.executable).with_name("ray"))


class Cluster:
    """A head without CPUs, and nodes that have some."""

    def __init__(self, head: RayHead, folder: Path) -> None:
        self._head, self._folder = head, folder
        self._nodes = ExitStack()
        self.address = f"{ray.util.get_node_ip_address()}:{head.gcs.rpartition(':')[2]}"
        self.done: list[str] = []
        """What was done to it, for who reads the test's output."""

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *_: object) -> None:
        self._nodes.close()

    @property
    def env(self) -> dict[str, str]:
        """What a driver that joins it needs."""
        return {
            **os.environ,
            "RAY_ADDRESS": self.address,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self._head.token_path),
        }

    def add(self, cpus: int) -> psutil.Process:
        """One more node, with a raylet that runs."""
        process = self._nodes.enter_context(self._node(cpus))
        wait_for(lambda: self._raylets(process), "a raylet", 60)
        self.done.append(f"a node of {cpus} CPUs was added")
        return process

    def raylet(self, node: psutil.Process) -> psutil.Process:
        """A node's raylet."""
        (found,) = self._raylets(node)
        return found

    def kill(self, node: psutil.Process) -> list[int]:
        """`kill -9` of a node's raylet; the ids of the workers that it had."""
        raylet = self.raylet(node)
        workers = [p.pid for p in raylet.children(recursive=True)]
        raylet.kill()
        self.done.append(f"raylet {raylet.pid} was killed (-9), with {len(workers)} processes")
        return workers

    def drain(self, node_id: str, deadline_s: int) -> None:
        """Tell Ray that a node will be taken away."""
        words = [
            RAY, "drain-node", f"--address={self.address}", f"--node-id={node_id}",
            "--reason=DRAIN_NODE_REASON_PREEMPTION", "--reason-message=preempted",
            f"--deadline-remaining-seconds={deadline_s}",
        ]  # fmt: skip
        subprocess.run(words, check=True, env=self.env, capture_output=True)
        self.done.append(f"node {node_id[:8]} was given {deadline_s} s notice")

    def train(self, spec: Path, job: str, home: Path) -> subprocess.Popen[bytes]:
        """A driver on the head's node; its output is `driver.log` beside the spec."""
        with spec.with_name("driver.log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "stoplab_trainers.main", str(spec)],
                env={**self.env, "STOPLAB_JOB_ID": job, "STOPLAB_HOME": str(home)},
                stdout=log,
                stderr=log,
            )

    @staticmethod
    def _raylets(node: psutil.Process) -> list[psutil.Process]:
        return [p for p in node.children(recursive=True) if p.name() == "raylet"]

    @contextmanager
    def _node(self, cpus: int) -> Iterator[psutil.Process]:
        words = [
            RAY, "start", "--block", f"--address={self.address}", f"--num-cpus={cpus}",
            "--object-store-memory=80000000", "--disable-usage-stats",
            f"--dashboard-agent-listen-port={free_port()}",
            f"--dashboard-agent-grpc-port={free_port()}",
            f"--metrics-export-port={free_port()}", f"--runtime-env-agent-port={free_port()}",
        ]  # fmt: skip
        with (self._folder / "nodes.log").open("ab") as log:
            process = subprocess.Popen(words, env=self.env, stdout=log, stderr=log)
        node = psutil.Process(process.pid)
        try:
            yield node
        finally:
            tree = node.children(recursive=True) if node.is_running() else []
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(20)
            process.kill()
            process.wait(20)
            for left in psutil.wait_procs(tree, timeout=5)[1]:
                left.kill()


@contextmanager
def cluster(folder: Path, nodes: list[int]) -> Iterator[tuple[Cluster, list[psutil.Process]]]:
    """A head and nodes with so many CPUs each."""
    with ray_head(num_cpus=0) as head, Cluster(head, folder) as found:
        yield found, [found.add(cpus) for cpus in nodes]


def place_of(run: RunFolder, rank: int) -> str:
    """The node that a rank is on."""
    return str(read_json(run.place(rank))["node"])


def losses(run: RunFolder) -> dict[int, float]:
    """`train/loss` by step, as it was sent to the tracker."""
    told = (line for line in read_lines(run.spool) if "train/loss" in line.get("values", {}))
    return {line["step"]: line["values"]["train/loss"] for line in told}


def workers(run: RunFolder) -> dict[int, int]:
    """`train/workers` by step."""
    told = (line for line in read_lines(run.spool) if "train/workers" in line.get("values", {}))
    return {line["step"]: int(line["values"]["train/workers"]) for line in told}
