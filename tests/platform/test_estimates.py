from __future__ import annotations

import json
from typing import Any

import pytest

from stoplab_platform.admission import Resources
from stoplab_platform.cost import Range, encoder_flops, memory, parameters
from stoplab_platform.estimates import START_S, Estimate, estimate
from stoplab_platform.rates import GPU_FLOPS, Measured
from stoplab_platform.specs import RunSpec, override, parse, parse_spec
from support_runs import TINY, tiny
from support_specs import example

TWO = Resources(2, 0)
KNOWN = Measured("j_1/run", tiny(), 1000.0, 6.0, 1216)
ARMS = {"deterministic": {"positions.kind": "deterministic"}, "stochastic": {}}
GRID = {"positions.noise_std": {"grid": [0.1, 0.2, 0.3]}}


def of(kind: str, known: tuple[Measured, ...] = (KNOWN,), **changes: Any) -> Estimate:
    given = {"compare": {"arms": ARMS, "seeds": [0, 1, 2]}, "sweep": {"space": GRID}}[kind]
    primary = {"primary": {"metric": "test/knn_top1"}} if kind == "compare" else {}
    data = {"kind": kind, "name": "x", "base": TINY, **given, **primary, **changes}
    return estimate(parse_spec(data), TWO, known)


def test_a_run_like_others() -> None:
    found = estimate(tiny(), TWO, [KNOWN])
    assert (found.confidence, found.runs, found.concurrent) == ("measured", 1, 1)
    assert found.images == 1257
    hours = (2 * 19 * 64 / 1000 + 6 + START_S.value) / 3600
    assert found.wall_hours is not None
    assert found.cpu_hours == found.wall_hours
    assert found.wall_hours.value == pytest.approx(hours)
    assert found.gpu_hours == Range(0, 0, 0)
    assert found.parameters == parameters(tiny())
    assert found.memory == memory(tiny())
    assert "measured in j_1/run" in found.rests_on.facts


def test_more_epochs_and_workers() -> None:
    one, ten = (estimate(tiny(optim__epochs=n), TWO, [KNOWN]).run_hours for n in (2, 200))
    assert one is not None
    assert ten is not None
    assert ten.value > 3 * one.value
    spec = tiny(compute__workers=4, compute__cpus_per_worker=2, compute__gpus_per_worker=0.5)
    found = estimate(spec, Resources(16, 4))
    assert found.run_hours is not None
    assert found.gpu_hours == found.run_hours * 2
    assert found.cpu_hours == found.run_hours * 8


def test_a_comparison_is_all_its_runs_in_rounds() -> None:
    found = of("compare")
    assert (found.runs, found.concurrent, found.confidence) == (6, 2, "measured")
    assert found.run_hours is not None
    assert found.cpu_hours is not None
    assert found.wall_hours is not None
    assert found.cpu_hours.value == pytest.approx(6 * found.run_hours.value)
    assert found.wall_hours.value == pytest.approx(3 * found.run_hours.value)
    alone = of("compare", limits={"max_concurrent": 1})
    assert alone.wall_hours is not None
    assert alone.wall_hours.value == pytest.approx(2 * found.wall_hours.value)


def test_arms_of_different_size() -> None:
    arms = {"small": {}, "large": {"model.depth": 12}}
    found, base = of("compare", arms=arms), estimate(tiny(), TWO, [KNOWN])
    assert found.confidence == "scaled", "the word of what is known least"
    assert found.run_hours is not None
    assert base.run_hours is not None
    assert found.run_hours.value > base.run_hours.value
    assert found.memory is not None
    assert found.memory.total.value == memory(tiny(model__depth=12)).total.value


def test_a_sweep() -> None:
    found = of("sweep", replicates=2)
    assert (found.runs, found.concurrent) == (6, 2)
    epochs = of("sweep", space={"optim.epochs": {"grid": [2, 400]}})
    assert epochs.run_hours is not None
    assert found.run_hours is not None
    assert epochs.run_hours.value > 3 * found.run_hours.value, "the mean of its points"
    ratios = of("sweep", space={"masking_ratio": {"grid": [0.6, 0.999]}})
    assert ratios.wall_hours is not None, "a point that cannot run takes nothing"


def test_runs_that_end_early() -> None:
    base = override(TINY, {"optim.epochs": 16, "evals": [{"kind": "knn", "every_epochs": 1}]})
    whole = of("sweep", base=base)
    halving = of("sweep", base=base, scheduler={"kind": "asha"})
    median = of("sweep", base=base, scheduler={"kind": "median"})
    assert whole.cpu_hours is not None
    for found, least in ((halving, (1 + 3 / 4 + 12 / 16) / 16), (median, 17 / 32)):
        assert found.cpu_hours is not None
        assert found.cpu_hours.high == pytest.approx(whole.cpu_hours.high)
        assert found.cpu_hours.low == pytest.approx(whole.cpu_hours.low * least)
        assert any("ends runs early" in fact for fact in found.rests_on.facts)


def test_limits_are_named() -> None:
    facts = of("sweep", limits={"wall_hours": 0.5}).rests_on.facts
    assert any("limits.wall_hours (0.5)" in fact for fact in facts)


def test_images_that_nobody_knows() -> None:
    spec = parse_spec(example("pretrain"))
    assert isinstance(spec, RunSpec)
    found = estimate(spec, TWO)
    assert found.wall_hours is found.gpu_hours is None
    assert found.flops_per_image is not None
    assert any("give `images`" in fact for fact in found.rests_on.facts)
    given = estimate(spec, TWO, images=1_281_167)
    assert given.gpu_hours is not None
    # The authors needed less than 1200 GPU-hours of A100 for ViT-H and 300 epochs.
    assert 50 < given.gpu_hours.value < 1200
    told = Measured("j_2/run", spec, 4000.0, None, 1_280_000)
    assert estimate(spec, TWO, [told]).images == 1_280_000, "an earlier run counted them"


def test_an_evaluation() -> None:
    spec = parse_spec(example("evaluate"))
    unknown = estimate(spec, TWO)
    assert unknown.wall_hours is unknown.parameters is None
    assert "not known" in unknown.rests_on.sentence
    known = estimate(spec, TWO, trained=tiny(data__image_size=32))
    assert known.wall_hours is not None
    assert known.parameters == parameters(tiny())


class TestJudging:
    """What evaluations add to a run on 1.28 million images of whose shards nothing is there."""

    IMAGES = 1_281_167

    def hours(self, evals: list[dict[str, Any]], **changes: Any) -> float:
        """Of evaluations alone."""
        found = [
            estimate(self.spec(one, **changes), TWO, images=self.IMAGES).run_hours
            for one in (evals, [])
        ]
        assert found[0] is not None
        assert found[1] is not None
        return found[0].value - found[1].value

    def passing(self, times: float) -> float:
        """Hours in which one GPU passes all images so often, were nothing else to be done."""
        operations = encoder_flops(self.spec([]).model.sizes(), 14**2)
        return times * self.IMAGES * operations / GPU_FLOPS.value / 3600

    def spec(self, evals: list[dict[str, Any]], **changes: Any) -> RunSpec:
        data = example("pretrain", evals=evals)
        data["data"]["eval"] = {"train": data["data"]["train"], "test": "/data/in1k/val-*.tar"}
        data["compute"]["workers"] = 32
        return parse(RunSpec, override(data, changes))

    def test_one_gpu_passes_all_labelled_images_in_each_epoch_of_a_probe(self) -> None:
        least = self.passing(2 * 28 * 0.9)
        found = self.hours([{"kind": "linear_sgd"}])
        assert least < found < 2 * least
        assert self.hours([{"kind": "linear_sgd"}], **{"compute.workers": 8}) == pytest.approx(
            found
        )
        assert self.hours([{"kind": "linear_sgd", "augment": False}]) < found / 10

    def test_logistic_regression_on_all_of_it_is_a_matter_of_many_hours(self) -> None:
        beside = self.hours([{"kind": "knn"}])
        assert self.hours([{"kind": "knn"}, {"kind": "linear"}]) - beside > 5
        few = self.hours([{"kind": "knn"}, {"kind": "low_shot", "fraction": 0.01}]) - beside
        assert 0 < few < 0.3

    def test_each_scheduled_look_passes_them_again(self) -> None:
        end, often = (self.hours([{"kind": "knn", **more}]) for more in ({}, {"every_epochs": 100}))
        assert self.passing(5) < often - end < 2 * self.passing(5)

    def test_few_labels_of_each_class_cost_less(self) -> None:
        whole, few = (
            self.hours([{"kind": "finetune", **more}]) for more in ({}, {"per_class": 13})
        )
        assert few < whole / 5

    def test_what_is_assumed_is_said(self) -> None:
        facts = estimate(self.spec([{"kind": "linear"}]), TWO, images=self.IMAGES).rests_on.facts
        (said,) = (fact for fact in facts if fact.startswith("evaluations: about "))
        assert "on one worker, while the others wait" in said
        assert "1281167 labelled images (they are the training images), 1000 classes" in said

    def test_a_checkpoint_is_judged_beside_its_untrained_self(self) -> None:
        trained = self.spec([])
        data = example("evaluate", protocols=[{"kind": "linear_sgd"}])
        data["data"] = {"train": trained.data.train, "test": "/data/in1k/val-*.tar"}
        data["compute"] = {"gpus_per_worker": 1}
        found = estimate(parse_spec(data), TWO, images=self.IMAGES, trained=trained).gpu_hours
        assert found is not None
        assert found.value == pytest.approx(self.hours([{"kind": "linear_sgd"}]), rel=0.01)


def test_it_is_json() -> None:
    told = json.loads(json.dumps(of("compare").plain()))
    assert told["parameters"]["trained"] == parameters(tiny()).trained
    assert told["wall_hours"].keys() == {"low", "value", "high"}
    assert told["rests_on"]["sentence"].endswith(".")
