"""Plug-ins as the documentation writes them, installed for real."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from jsonschema import Draft202012Validator, ValidationError

from stoplab_platform import plugins
from stoplab_platform.cost import flops
from stoplab_platform.errors import SpecError
from stoplab_platform.exits import Exit
from stoplab_platform.files import read_json
from stoplab_platform.masks import context_tokens, effective_ratio, num_blocks, target_tokens
from stoplab_platform.paths import JobFolder
from stoplab_platform.specs import RunSpec, SweepSpec, applied, parse
from stoplab_platform.specs.schema import schema_of
from stoplab_trainers.data.shards import ShardSet
from stoplab_trainers.diagnostics.landing import displacements
from stoplab_trainers.diagnostics.noise import position_stats, spectrum
from stoplab_trainers.loop import Run, steps
from stoplab_trainers.main import main
from stoplab_trainers.model.jepa import build_model
from stoplab_trainers.model.positions import position_step
from support_models import case
from support_plugins import blocks, install, install_clipped
from support_runs import TINY, tiny

CLIPPED = {"kind": "clipped", "noise_std": 0.5, "bound": 1.5}
NO_TORCH = """
import sys
sys.modules["torch"] = None
from pathlib import Path
from stoplab_platform.specs import load_spec
print(load_spec(Path(sys.argv[1])).positions.plain())
"""
THREE_STEPS = """
import sys
from itertools import islice
from pathlib import Path
from stoplab_platform.specs import load_spec
from stoplab_trainers.data.shards import ShardSet
from stoplab_trainers.diagnostics.landing import displacements
from stoplab_trainers.diagnostics.noise import position_stats, spectrum
from stoplab_trainers.loop import Run, steps
run = Run(load_spec(Path(sys.argv[1])), ShardSet.open("digits", Path(sys.argv[1]).parent))
for report in islice(steps(run), 3):
    print(report.metrics["train/loss"])
"""

Installing = Callable[[Callable[[Path], None]], None]


@pytest.fixture
def installing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Installing]:
    """Installs into this process, for one test."""
    before = set(sys.modules)

    def add(one: Callable[[Path], None]) -> None:
        one(tmp_path / "site")
        monkeypatch.syspath_prepend(tmp_path / "site")
        plugins.installed.cache_clear()

    yield add
    plugins.installed.cache_clear()
    for name in set(sys.modules) - before:
        if name.startswith("stoplab_") and not name.startswith(("stoplab_pl", "stoplab_tr")):
            del sys.modules[name]


@pytest.fixture
def outside(tmp_path: Path) -> dict[str, str]:
    """The environment of a process of its own that has the package of the page."""
    install_clipped(tmp_path / "site")
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path / "site"), *sys.path])}


def written(tmp_path: Path, **changes: Any) -> str:
    path = tmp_path / "spec.yaml"
    path.write_text(yaml.safe_dump({**TINY, "evals": [], **changes}))
    return str(path)


def test_a_process_without_torch_reads_its_spec(tmp_path: Path, outside: dict[str, str]) -> None:
    command = [sys.executable, "-c", NO_TORCH, written(tmp_path, positions=CLIPPED)]
    done = subprocess.run(command, env=outside, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str({"kind": "clipped", "noise_std": 0.5, "noise_on": "masked",
                                       "bound": 1.5})  # fmt: skip


def test_a_process_of_its_own_trains_with_it(tmp_path: Path, outside: dict[str, str]) -> None:
    command = [sys.executable, "-c", THREE_STEPS, written(tmp_path, positions=CLIPPED)]
    done = subprocess.run(command, env=outside, capture_output=True, text=True, check=True)
    losses = [float(line) for line in done.stdout.split()]
    assert len(losses) == 3
    assert losses[2] < losses[0]


def test_a_finished_run_knows_its_version(
    tmp_path: Path, installing: Installing, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installing(install_clipped)
    monkeypatch.setenv("STOPLAB_JOB_ID", "j_plug")
    optim = {**TINY["optim"], "epochs": 1, "batch_size": 256}
    assert main([written(tmp_path, positions=CLIPPED, optim=optim)]) == Exit.OK
    summary = read_json(JobFolder(home / "jobs" / "j_plug").run("run").summary)
    facts = summary["facts"]
    assert facts["plugins"] == {"positions.clipped": "stoplab-clipped 0.1.0"}
    spec = tiny(positions=CLIPPED, evals=[], optim=optim)
    assert spec.run_digest(facts) == summary["run_digest"]
    newer = {**facts, "plugins": {"positions.clipped": "stoplab-clipped 0.2.0"}}
    assert spec.run_digest(newer) != summary["run_digest"]


def test_its_noise_is_its_own(installing: Installing) -> None:
    installing(install_clipped)
    made = case(positions=CLIPPED)
    noise = made.model.predictor.noise
    assert type(noise).__module__ == "stoplab_clipped.noise"
    unit, tied = torch.tensor([[-9.0] * 16, [0.5] * 16]), made.model.predictor.embed.weight
    expected = 0.5 * torch.tensor([[-1.5] * 16, [0.5] * 16]) @ tied.T
    assert torch.allclose(noise(unit, tied), expected)
    assert made.noise.masked is not None
    assert made.predictions().isfinite().all()
    quiet, plain = case(positions={**CLIPPED, "noise_std": 0}), case(positions__noise_std=0)
    assert torch.equal(quiet.predictions(), plain.predictions())
    assert flops(made.spec).train == flops(case().spec).train


def test_diagnostics_measure_what_its_noise_does(installing: Installing) -> None:
    """Clipped at half a deviation it is much shorter than StoP's by the same numbers."""
    installing(install_clipped)
    tight = {"kind": "clipped", "noise_std": 0.5, "bound": 0.5}
    made, plain = case(positions=tight), case(positions__noise_std=0.5)
    moved = displacements(made.model, made.spec, 5, 4000).detach()[:, 1:].flatten(0, 1)
    features = torch.ones(1, 16)
    told, stop = (position_stats(one.model, one.spec, features) for one in (made, plain))
    length = told["stop/displacement_patches"] * position_step(16)
    assert length == pytest.approx(float(moved.square().sum(1).mean().sqrt()), rel=0.03)
    assert told["stop/displacement_patches"] < 0.5 * stop["stop/displacement_patches"]
    assert told["stop/noise_to_signal"] < 0.5 * stop["stop/noise_to_signal"]
    values = spectrum(made.model, made.spec)
    assert values is not None
    assert np.allclose(values, torch.linalg.eigvalsh(torch.cov(moved.T)).flip(0), rtol=0.1)
    quiet = case(positions={**CLIPPED, "noise_std": 0})
    assert position_stats(quiet.model, quiet.spec, features)["stop/displacement_patches"] == 0
    assert spectrum(quiet.model, quiet.spec) is None


def test_mistakes_are_told_by_its_own_spec(installing: Installing) -> None:
    installing(install_clipped)
    for wrong, path in (({"bound": -1}, "bound"), ({"bounds": 1}, "bounds")):
        with pytest.raises(SpecError) as refused:
            parse(RunSpec, {**TINY, "positions": {**CLIPPED, **wrong}, "seed": -1})
        assert {p.dotted for p in refused.value.problems} == {f"positions.{path}", "seed"}
    with pytest.raises(SpecError, match="installed here: 'clipped'"):
        tiny(positions={"kind": "clippd"})


def test_it_is_a_kind_like_any_other(installing: Installing) -> None:
    plain = tiny()
    before = plain.digest()
    installing(install_clipped)
    assert plain.digest() == before
    assert plain.plugins() == {}
    spec = applied(plain, {"positions.kind": "clipped", "positions.bound": 1.0}, RunSpec)
    assert parse(RunSpec, json.loads(json.dumps(spec.plain()))) == spec
    assert parse(RunSpec, spec.plain(defaults=False)).digest() == spec.digest() != before
    assert tiny(positions={"kind": "clipped", "bound": 2.0}).digest() == tiny(
        positions={"kind": "clipped"}
    ).digest()  # fmt: skip
    schema = schema_of(RunSpec)
    *_, own = schema["properties"]["positions"]["oneOf"]
    assert own["properties"]["bound"]["description"].startswith("Largest unit noise")
    Draft202012Validator(schema).validate(spec.plain())
    with pytest.raises(ValidationError):
        Draft202012Validator(schema).validate({**spec.plain(), "positions": {"kind": "clippd"}})
    axes = {"positions.bound": {"grid": [1.0, 2.0]}, "positions.noise_std": {"grid": [0, 0.5]}}
    sweep = {"kind": "sweep", "name": "s", "base": spec.plain(), "space": axes}
    assert parse(SweepSpec, sweep).num_runs() == 4


BROKEN = {
    "missing": ("import nix", "cannot be imported: No module named 'nix'"),
    "unread": ("def (", "cannot be imported: SyntaxError: "),
    "raising": ("1 / 0", "cannot be imported: ZeroDivisionError: "),
    "without": ("", "cannot be imported: AttributeError: "),
    "number": ("Positions = 1", "cannot be used: stoplab_broken:Positions derives from no Plugin"),
    "masking": (
        "from stoplab_platform.specs.masking import PluginMasking as Positions",
        "derives from no PluginPositions",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_package_that_is_broken_is_named_and_breaks_nothing(
    installing: Installing, name: str
) -> None:
    module, said = BROKEN[name]
    points = {"positions.broken": "stoplab_broken:Positions"}
    installing(lambda site: install(site, "stoplab-broken", "3", {"__init__": module}, points))
    with pytest.raises(SpecError, match=f"plug-in stoplab-broken 3 .*{said}"):
        tiny(positions={"kind": "broken"})
    assert tiny().positions.kind == "stochastic"
    assert len(schema_of(RunSpec)["properties"]["positions"]["oneOf"]) == 2


def test_what_has_no_schema_stays_out_of_the_schema(installing: Installing) -> None:
    module = blocks("python")[0].replace(
        "    bound: float", "    way: type = int\n    bound: float"
    )
    points = {"positions.clipped": "stoplab_clipped:ClippedPositions"}
    installing(lambda site: install(site, "stoplab-clipped", "4", {"__init__": module}, points))
    assert tiny(positions=CLIPPED).positions.kind == "clipped"
    assert len(schema_of(RunSpec)["properties"]["positions"]["oneOf"]) == 2


def test_a_kind_of_ours_stays_ours(installing: Installing) -> None:
    points = {"positions.stochastic": "stoplab_clipped:ClippedPositions"}
    modules = {"__init__": blocks("python")[0]}
    installing(lambda site: install(site, "stoplab-clipped", "9", modules, points))
    assert tiny().plugins() == {}
    assert len(schema_of(RunSpec)["properties"]["positions"]["oneOf"]) == 2
    with pytest.raises(SpecError, match="installed here: none"):
        tiny(positions={"kind": "clipped"})


def test_a_kind_of_two_packages_is_nobodys(installing: Installing) -> None:
    def both(site: Path) -> None:
        install_clipped(site)
        points = {"positions.clipped": "stoplab_other:ClippedPositions"}
        install(site, "stoplab-other", "1", {"__init__": blocks("python")[0]}, points)

    installing(both)
    said = "'clipped' is brought by stoplab-clipped 0.1.0 and stoplab-other 1: uninstall all but"
    with pytest.raises(SpecError, match=said):
        tiny(positions=CLIPPED)
    assert len(schema_of(RunSpec)["properties"]["positions"]["oneOf"]) == 2


@pytest.mark.parametrize(
    ("torch_module", "said"),
    [("import nix", "what trains, which cannot be imported: .*nix"),
     ("def (", "what trains, which cannot be imported: SyntaxError: "),
     ("class ClippedNoise:\n    def __init__(self, *given): ...\n", "makes no PositionNoise")],
)  # fmt: skip
def test_a_torch_part_that_does_not_fit(
    installing: Installing, torch_module: str, said: str
) -> None:
    points = {"positions.clipped": "stoplab_clipped:ClippedPositions"}
    modules = {"__init__": blocks("python")[0], "noise": torch_module}
    installing(lambda site: install(site, "stoplab-clipped", "2", modules, points))
    spec = tiny(positions=CLIPPED)
    with pytest.raises(SpecError, match=said):
        build_model(spec)


def test_a_masking(installing: Installing, home: Path) -> None:
    points = {"masking.columns": "stoplab_columns:ColumnMasking"}
    module = {"__init__": blocks("python")[2]}
    installing(lambda site: install(site, "stoplab-columns", "1", module, points))
    spec = tiny(masking={"kind": "columns", "masked": 1})
    assert (context_tokens(spec.masking, 4), target_tokens(spec.masking, 4)) == (12, 4)
    assert (effective_ratio(spec.masking, 4), num_blocks(spec.masking, 4)) == (0.25, 1)
    assert flops(spec).train > 0
    run = Run(spec, ShardSet.open("digits", home / "cache"))
    first = next(islice(steps(run), 1))
    assert first.metrics["mask/context_tokens"] == 12
    assert first.metrics["mask/effective_ratio"] == 0.25
    column = case(masking={"kind": "columns", "masked": 1}).masks.targets[0, 0]
    assert (column % 4).unique().numel() == 1
    with pytest.raises(SpecError, match="leave no context"):
        tiny(masking={"kind": "columns", "masked": 4})


def test_an_objective(installing: Installing, home: Path) -> None:
    points = {"objective.cosine": "stoplab_cosine:CosineObjective"}
    modules = dict(zip(("__init__", "loss"), blocks("python")[3:5], strict=True))
    installing(lambda site: install(site, "stoplab-cosine", "1", modules, points))
    run = Run(tiny(objective="cosine"), ShardSet.open("digits", home / "cache"))
    reports = list(islice(steps(run), 38))
    assert 0 < reports[-1].metrics["train/loss"] < reports[0].metrics["train/loss"] < 2
    assert run.spec.plugins() == {"objective.cosine": "stoplab-cosine 1"}
    schema = Draft202012Validator(schema_of(RunSpec))
    for written in ("cosine", {"kind": "cosine"}):
        schema.validate({**run.spec.plain(), "objective": written})
    assert not schema.is_valid({**run.spec.plain(), "objective": {"kind": "sine"}})
