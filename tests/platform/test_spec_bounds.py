"""What a spec is refused for before anything is computed: its types, its sizes, its length."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from stoplab_platform.counting import count_images
from stoplab_platform.estimates import estimate
from stoplab_platform.resources import Resources
from stoplab_platform.specs import RunSpec, load_spec, parse_spec
from support_specs import example, problems, small

WIDE = {
    "kind": "multiblock",
    "min_keep": 1,
    "target": {"count": 16, "scale": [0.05, 1.0], "aspect": [0.1, 16.0]},
    "context": {"scale": [0.5, 1.0], "aspect": [0.1, 16.0]},
}
"""Masks of very many sizes."""


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Of this thread's own time: other work on the machine is not counted."""
    began = time.thread_time()
    yield
    assert time.thread_time() - began < seconds


class TestTypes:
    @pytest.mark.parametrize("text", ["8e-4", "8E-4", "0.8e-3", ".8e-3", "+8.0e-4"])
    def test_a_yaml_file_may_write_an_exponent_without_a_dot(
        self, tmp_path: Path, text: str
    ) -> None:
        path = tmp_path / "spec.yaml"
        path.write_text(yaml.safe_dump(small(optim={"lr": "LR"})).replace("LR", text))
        assert load_spec(path).digest() == parse_spec(small(optim={"lr": 0.0008})).digest()

    def test_a_text_is_no_number(self) -> None:
        found = problems(small(seed="3", optim={"lr": "8e-4", "ema": ["0.9", 1.0]}))
        assert set(found) == {"seed", "optim.lr", "optim.ema"}
        assert found["seed"] == "'3' is a text; give a number"

    @pytest.mark.parametrize("value", [0, 1, 1.0, "true", "yes"])
    def test_only_true_and_false_are_truth_values(self, value: Any) -> None:
        found = problems(small(data={"train": "digits", "hflip": value}))
        assert found == {"data.hflip": f"{value!r} is no truth value; give true or false"}

    def test_a_truth_value_in_a_list_is_no_number_either(self) -> None:
        data = small(data={"train": "digits", "crop_scale": [0.3, True]})
        assert set(problems(data)) == {"data.crop_scale"}


class TestSizes:
    @pytest.mark.parametrize("value", [2**200, 10**400, 1e300])
    @pytest.mark.parametrize(
        "field",
        ["seed", "optim.epochs", "optim.batch_size", "model.width", "model.depth", "model.heads",
         "model.patch_size", "model.predictor.width", "masking.min_keep", "compute.workers",
         "compute.cpus_per_worker", "compute.threads", "limits.wall_hours", "checkpoint.keep",
         "checkpoint.every_steps", "tracking.log_every_steps", "data.loader_threads"],
    )  # fmt: skip
    def test_no_number_is_beyond_all_use(self, field: str, value: float) -> None:
        part, _, rest = field.partition(".")
        for name in reversed(rest.split(".") if rest else []):
            value = {name: value}  # type: ignore[assignment]
        masking = {"kind": "multiblock"} if part == "masking" else {}
        asked = {**masking, **value} if isinstance(value, dict) else value
        assert field in problems({**small(), part: {"train": "digits", **asked}
                                  if part == "data" else asked})  # fmt: skip

    def test_a_grid_of_too_many_patches(self) -> None:
        with at_most(1.0):
            found = problems(
                small(data={"train": "digits", "image_size": 4096}, model={"patch_size": 1})
            )
        assert set(found) == {"data.image_size"}
        assert "at most 128x128" in found["data.image_size"]

    def test_the_largest_grid_is_looked_at_quickly(self) -> None:
        with at_most(4.0):
            parse_spec(small(data={"train": "digits", "image_size": 2048}, masking=WIDE))

    def test_masks_of_many_sizes_are_estimated_quickly(self) -> None:
        spec = parse_spec(small(data={"train": "digits", "image_size": 256}, masking=WIDE))
        assert isinstance(spec, RunSpec)
        with at_most(4.0):
            assert estimate(spec, Resources(1)).flops_per_image is not None

    def test_an_axis_of_too_many_values(self) -> None:
        space = {"seed": {"grid": list(range(20_000))}}
        with at_most(2.0):
            assert set(problems(example("sweep", space=space))) == {"space.seed.grid"}

    def test_axes_of_too_many_values_together(self) -> None:
        values = [n / 1000 for n in range(600)]
        axes = {name: {"grid": values} for name in ("positions.noise_std", "optim.clip_grad")}
        with at_most(2.0):
            found = problems(example("sweep", space=axes))
        assert found == {"space": "lists 1200 values in all; at most 1000 can be"}

    def test_too_many_arms_and_seeds(self) -> None:
        arms = {f"arm-{n}": {} for n in range(5000)}
        with at_most(2.0):
            found = problems(example("compare", arms=arms, seeds=list(range(100_000))))
        assert set(found) == {"arms", "seeds"}


class TestLength:
    def test_of_many_mistakes_a_hundred_are_told(self) -> None:
        with at_most(3.0):
            found = problems(small(**{f"field_{n}": n for n in range(50_000)}))
        assert len(found) == 101
        assert found[""] == "49900 problems more"

    def test_of_a_long_value_the_beginning_is_shown(self) -> None:
        (message,) = problems(small(name="x" * 500_000)).values()
        assert message.startswith("'xxx")
        assert len(message) < 400

    @pytest.mark.parametrize("path", [".".join("a" * 50_000), "a." * 15 + "a" * 200])
    def test_no_dotted_path_is_endless(self, path: str) -> None:
        with at_most(2.0):
            problems(example("compare", arms={"a": {path: 1}, "b": {}}))
            problems(example("sweep", space={path: {"grid": [1]}}))

    def test_a_deep_override_is_refused(self) -> None:
        found = problems(example("compare", arms={"a": {".".join("a" * 40): 1}, "b": {}}))
        assert any("at most 16 names deep" in message for message in found.values())


class TestCounting:
    @pytest.mark.parametrize(
        "place",
        ["a\0b.tar", "~nobody-has-this-name/a.tar", "x" * 3000, "/" + "y" * 300, "{0..9}" * 400,
         "/*/*/*/*/*.tar", "/**/*.tar", "{0..999999999}{0..999999999}.tar", "[", "a-{9..0}.tar"],
    )  # fmt: skip
    def test_what_is_no_shard_is_not_counted(self, place: str) -> None:
        with at_most(1.0):
            assert count_images(place) is None
            assert count_images((place,) * 1000) is None
