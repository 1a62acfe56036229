"""Run all benchmarks and write `benchmarks/results/DATE-HARDWARE.md` and `.json`.

python benchmarks/bench.py [NAME ...]

Where there is a GPU: those of GPUs, unless told otherwise.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).parent
ALL = ("submit", "get_job", "list_jobs", "log_follow", "first_line")
ALL += ("loader_224", "loader_96", "tar", "step", "masks", "metrics", "checkpoint")
ALL += ("ray_train", "workers")
ON_GPU = ("mfu", "bf16")
FEW = 4
"""Cases that each get a line of their own; of more the worst is shown."""


def main() -> int:
    """Run them one after another; ends with 1 if one missed its bar."""
    names = sys.argv[1:] or (ON_GPU if torch.cuda.is_available() else ALL)
    loads = [load()]
    results = []
    for name in names:
        print(f"{name} …", flush=True)
        results.append(run(name))
        loads.append(load())
        print(f"  {bar(results[-1])}", flush=True)
    told = {"hardware": hardware(), "cores": os.cpu_count(), "load": loads, "results": results}
    at = datetime.now(UTC).date()
    path = HERE / "results" / f"{at}-{re.sub(r'[^a-z0-9]+', '-', hardware().lower()).strip('-')}"
    path.parent.mkdir(exist_ok=True)
    path.with_suffix(".json").write_text(json.dumps({"date": str(at), **told}, indent=1) + "\n")
    path.with_suffix(".md").write_text(page(str(at), loads, results))
    print(path.with_suffix(".md"))
    return 0 if all(one["passed"] for one in results) else 1


def run(name: str) -> dict[str, Any]:
    """One benchmark's document."""
    done = subprocess.run(
        [sys.executable, HERE / f"{name}.py", "--json"], capture_output=True, text=True, check=False
    )
    lines = done.stdout.strip().splitlines()
    if not lines or not lines[-1].startswith("{"):
        return {"name": name, "passed": False, "error": done.stderr.strip().splitlines()[-1:]}
    found: dict[str, Any] = json.loads(lines[-1])
    return found


def page(at: str, loads: list[float], results: list[dict[str, Any]]) -> str:
    """The results for people."""
    rows = "\n".join(f"| {name} | {bar(one)} |" for told in results for name, one in lines(told))
    return (
        f"# {at}, {hardware()}, {os.cpu_count()} cores\n\n"
        f"Load of the machine (1 min) before, between and after: {', '.join(map(str, loads))}. "
        "Every ratio is the median of rounds in which both sides take turns.\n\n"
        f"| benchmark | result |\n|---|---|\n{rows}\n"
    )


def lines(told: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """What the page shows of a benchmark: its cases where they are few, else the worst."""
    cases = told.get("cases", [])
    if not 1 < len(cases) <= FEW:
        return [(told["name"], told)]
    name = told["name"]
    labels = (case["name"] if case["name"] == name else f"{name}: {case['name']}" for case in cases)
    return list(zip(labels, cases, strict=True))


def bar(one: dict[str, Any]) -> str:
    """A result and its bar in a line."""
    verdict = "passed" if one["passed"] else "**missed**"
    if "error" in one:
        return f"did not run: {one['error']}"
    if "value_mb_s" in one:
        return f"{one['value_mb_s']:g} MB/s; at least {one['floor']:g}: {verdict}"
    low, high = one["quartiles"]
    if "seconds_beyond" in one:
        return (
            f"{one['seconds_beyond']:g} s [{low:g}, {high:g}]; at most {one['at_most']}: {verdict}"
        )
    floor, most = one["floor"], one["at_most"]
    digits = 2 if one["ratio"] >= 0.1 else 4
    ratio, low, high = (f"{value:.{digits}f}" for value in (one["ratio"], low, high))
    if floor is None and most is None:
        return f"{ratio} [{low}, {high}]"
    bound = f"at most {most:g}" if floor is None else f"at least {floor:g}"
    aim = "" if one["aim"] is None else f" (aim {one['aim']:g})"
    return f"{ratio} [{low}, {high}]; {bound}{aim}: {verdict}"


def hardware() -> str:
    """The GPU's name, or the processor's where there is none.

    With its generation: a machine that is rented often says "AMD EPYC" of any.
    """
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    told = dict(re.findall(r"^(cpu family|model|model name)\s*: (.+)$", text, re.MULTILINE))
    if "model name" not in told:
        return "unknown"
    name = told.pop("model name").split("@")[0].strip()
    return " ".join([name, *(f"{key.removeprefix('cpu ')} {told[key]}" for key in sorted(told))])


def load() -> float:
    """Processes that want a core, mean of a minute."""
    return round(os.getloadavg()[0], 1)


if __name__ == "__main__":
    sys.exit(main())
