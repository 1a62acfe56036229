"""Specs: strict, frozen, all problems at once, YAML in and out, digests that stay."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from stoplab_platform.errors import SpecError
from stoplab_platform.specs import (
    KINDS,
    ComparisonSpec,
    EvaluationSpec,
    RunSpec,
    SweepSpec,
    parse,
    parse_spec,
)
from stoplab_platform.specs.positions import DeterministicPositions, StochasticPositions
from support_specs import EXAMPLES, example, problems, run, small

FACTS = {"data": "f00d", "precision": "fp32"}


class TestStrictness:
    @pytest.mark.parametrize("kind", EXAMPLES)
    def test_unknown_fields_are_refused_with_their_path(self, kind: str) -> None:
        assert problems(example(kind, extra=1)) == {"extra": "unknown field"}

    def test_also_deep_inside(self) -> None:
        data = small(masking={"kind": "multiblock", "target": {"scales": [0.1, 0.2]}})
        assert problems(data) == {"masking.target.scales": "unknown field"}

    def test_the_fields_of_one_variant_are_not_the_other_ones(self) -> None:
        data = small(positions={"kind": "deterministic", "noise_std": 0.1})
        assert problems(data) == {"positions.noise_std": "unknown field"}

    def test_a_spec_cannot_be_changed(self) -> None:
        spec = run()
        with pytest.raises(ValidationError, match="frozen"):
            spec.seed = 1
        with pytest.raises(ValidationError, match="frozen"):
            spec.optim.lr = 1.0

    @pytest.mark.parametrize("value", [True, False])
    def test_a_truth_value_is_no_number(self, value: bool) -> None:
        data = small(seed=value, optim={"lr": value}, name=value)
        assert set(problems(data)) == {"seed", "optim.lr", "name"}
        assert run(data={"train": "digits", "hflip": value}).data.hflip is value

    @pytest.mark.parametrize("value", [math.nan, math.inf])
    def test_numbers_are_finite(self, value: float) -> None:
        data = small(optim={"clip_grad": value, "weight_decay": [0.04, value]})
        assert set(problems(data)) == {"optim.clip_grad", "optim.weight_decay.1"}

    @pytest.mark.parametrize("data", [None, [], "text", 3])
    def test_a_spec_is_a_mapping(self, data: Any) -> None:
        assert list(problems(data)) == [""]

    @pytest.mark.parametrize("kind", [None, "train", 3, ["pretrain"]])
    def test_the_kind_is_one_of_four(self, kind: Any) -> None:
        (message,) = problems({"kind": kind}).values()
        assert all(known in message for known in KINDS)


class TestAllProblemsAtOnce:
    def test_grid_batch_and_masks(self) -> None:
        data = small(
            data={"train": "digits", "image_size": 225},
            optim={"batch_size": 30},
            compute={"workers": 4},
            masking={"kind": "multiblock", "min_keep": 100},
        )
        assert problems(data).keys() == {"data.image_size", "optim.batch_size", "masking.min_keep"}

    def test_fields_and_checks_across_fields(self) -> None:
        data = small(
            extra=1,
            positions={"noise_std": -1},
            optim={"batch_size": 63, "epochs": 3, "warmup_epochs": 7},
            compute={"workers": 2},
            model={"encoder": "custom", "width": 16, "depth": 1, "heads": 3, "patch_size": 4},
            masking={"min_keep": 15},
            data={"train": "digits", "image_size": 16, "crop_scale": [0.9, 0.1]},
        )
        assert problems(data).keys() == {
            "extra",
            "positions.noise_std",
            "optim.batch_size",
            "optim.warmup_epochs",
            "model.width",
            "masking.min_keep",
            "data.crop_scale",
        }

    def test_every_item_of_a_list_under_its_own_number(self) -> None:
        data = small(
            evals=[{"kind": "knn", "k": 0}, {"kind": "nope"}, {"kind": "low_shot"}, "x", {"k": 3}],
            optim={"batch_size": 63},
            compute={"workers": 2},
        )
        assert problems(data) == {
            "evals.0.k": "0: Input should be greater than or equal to 1",
            "evals.1.kind": (
                "'nope' is none of 'knn', 'linear', 'linear_sgd', 'low_shot', 'location', "
                "'robustness', 'finetune', 'segmentation'"
            ),
            "evals.2.fraction": "give either fraction or per_class, or a list",
            "evals.3": "'x': Input should be a valid dictionary or object to extract fields from",
            "evals.4.kind": "required, and not given",
            "optim.batch_size": "63 must divide by compute.workers (2)",
        }

    def test_what_only_follows_from_another_problem_is_not_reported(self) -> None:
        data = small(optim={"epochs": -3, "warmup_epochs": 10})
        assert problems(data).keys() == {"optim.epochs"}
        data = small(model={"encoder": "resnet50"}, masking={"min_keep": 10})
        assert problems(data).keys() == {"model.encoder"}

    def test_missing_fields_do_not_hide_the_rest(self) -> None:
        data = {"kind": "pretrain", "compute": {"workers": 3}, "optim": {"lr": -1}}
        assert problems(data) == {
            "name": "required, and not given",
            "data": "required, and not given",
            "optim.lr": "-1: Input should be greater than 0",
            "optim.batch_size": "2048 must divide by compute.workers (3)",
        }

    def test_a_wrong_object_does_not_hide_the_rest(self) -> None:
        data = small(checkpoint=5, data=7, optim={"batch_size": 3}, compute={"workers": 2})
        assert problems(data).keys() == {"checkpoint", "data", "optim.batch_size"}

    def test_shards_are_a_text_or_texts(self) -> None:
        assert problems(small(data={"train": 5})).keys() == {"data.train"}
        assert problems(small(data={"train": ["a", 5]})).keys() == {"data.train.1"}

    def test_inside_the_base_of_a_sweep(self) -> None:
        data = example(
            "sweep",
            base=small(seed=-1, optim={"epochs": 2}),
            space={
                "positions.noise": {"grid": [0.1]},
                "positions.noise_std": {"grid": [0.1, -1]},
                "masking_ratio": {"uniform": [0.5, 2]},
                "optim.lr": {},
            },
            search={"kind": "random"},
            objective={"metric": "test/knn_top1"},
        )
        assert problems(data).keys() == {
            "base.seed",
            "base.optim.warmup_epochs",
            "space.positions.noise",
            "space.positions.noise_std",
            "space.masking_ratio",
            "space.optim.lr",
            "search.samples",
            "objective.metric",
        }

    def test_inside_the_arms_of_a_comparison(self) -> None:
        data = example(
            "compare",
            arms={"a": {"positions.noise_std": -1, "seed": 3}, "b": {"optim.x": 1}},
            seeds=[0, 0, -1],
            primary={"metric": "train/loss", "alpha": 2},
        )
        assert problems(data).keys() == {
            "arms.a.positions.noise_std",
            "arms.a.seed",
            "arms.b.optim.x",
            "seeds",
            "primary.metric",
            "primary.alpha",
        }

    def test_a_checkpoint_is_named_in_one_way(self) -> None:
        assert problems(example("evaluate", checkpoint={"job": "j", "path": "p"})).keys() == {
            "checkpoint"
        }
        assert problems(example("evaluate", protocols=[])).keys() == {"protocols"}

    def test_an_evaluation_is_one_process_with_whole_batches(self) -> None:
        one = [{"kind": "linear_sgd", "batch_size": 1}]
        data = example("evaluate", protocols=one, compute={"workers": 2})
        assert problems(data).keys() == {"protocols.0.batch_size", "compute.workers"}

    def test_pointers_are_json_pointers_below_a_prefix(self) -> None:
        with pytest.raises(SpecError) as refused:
            parse_spec(small(tracking={"tags": {"a/b~c": 1}}))
        (problem,) = refused.value.problems
        assert problem.pointer("/spec") == "/spec/tracking/tags/a~1b~0c"

    def test_the_text_of_the_error_names_all(self) -> None:
        with pytest.raises(SpecError, match=r"2 problem\(s\)(.|\n)*seed(.|\n)*optim\.lr"):
            parse_spec(small(seed=-1, optim={"lr": 0}))


class TestMeaning:
    def test_evaluations_need_labels(self) -> None:
        data = {"train": "/data/train.tar"}
        assert problems(small(data=data)).keys() == {"data.eval"}
        assert run(data=data, evals=[]).data.eval_data() is None

    def test_a_protocol_again_needs_a_label(self) -> None:
        twice = [{"kind": "knn"}, {"kind": "knn", "k": 5}]
        found = problems(small(evals=twice))
        assert found.keys() == {"evals.1.label"}
        assert found["evals.1.label"].startswith("'knn_top1' is measured before")
        labelled = [twice[0], {**twice[1], "label": "five"}]
        assert run(evals=labelled).metrics() == ("knn_top1", "knn_top1.five")
        for label in ("draw0", "up", "a.b", "1st", ""):
            assert "evals.0.label" in problems(small(evals=[{"kind": "knn", "label": label}]))
        robust = {"kind": "robustness", "label": "far"}
        assert run(evals=[robust]).metrics() == ("robust_shift_top1.far", "robust_crop_top1.far")

    def test_a_custom_encoder_needs_its_sizes(self) -> None:
        (message,) = problems(small(model={"encoder": "custom", "width": 16})).values()
        assert message == "encoder 'custom' needs depth, heads, patch_size"

    def test_a_named_encoder_can_be_resized(self) -> None:
        sizes = run(
            model={"encoder": "vit_base_patch16_224", "depth": 2},
        ).model.sizes()
        assert (sizes.width, sizes.depth, sizes.heads, sizes.patch_size) == (768, 2, 12, 16)

    def test_nothing_is_selected_on_the_test_set(self) -> None:
        for metric in ("test/knn_top1", "train/loss"):
            found = problems(example("sweep", objective={"metric": metric}))
            assert found.keys() == {"objective.metric"}

    def test_a_grid_search_needs_grids(self) -> None:
        found = problems(example("sweep", search={"kind": "grid"}))
        assert found.keys() == {"space.masking_ratio"}

    def test_arms_share_all_but_their_overrides(self) -> None:
        spec = parse(ComparisonSpec, example("compare"))
        assert spec.reference == "deterministic"
        deterministic, stochastic = (spec.arm(name, seed=3) for name in spec.arms)
        assert isinstance(deterministic.positions, DeterministicPositions)
        assert isinstance(stochastic.positions, StochasticPositions)
        assert deterministic.seed == stochastic.seed == 3
        plain = [{**arm.plain(), "positions": 0, "name": 0} for arm in (deterministic, stochastic)]
        assert plain[0] == plain[1]

    def test_the_longest_names_give_arms_that_differ(self) -> None:
        arms = {"a" * 119 + "1": {"seed": 0}, "b" * 120: {}}
        data = example("compare", name="n" * 120, arms={name: {} for name in arms})
        spec = parse(ComparisonSpec, data)
        names = {spec.arm(arm, seed).name for arm in spec.arms for seed in (0, 2**31 - 1)}
        assert len(names) == 4

    def test_seeds_of_a_comparison_are_seeds_of_its_runs(self) -> None:
        assert problems(example("compare", seeds=[0, 2**31])).keys() == {"seeds"}


class TestYaml:
    @pytest.mark.parametrize("kind", EXAMPLES)
    def test_round_trip(self, kind: str) -> None:
        spec = parse_spec(example(kind))
        assert isinstance(spec, KINDS[kind])
        again = parse_spec(yaml.safe_load(spec.to_yaml()))
        assert again == spec
        assert again.digest() == spec.digest()

    @pytest.mark.parametrize("kind", EXAMPLES)
    def test_through_json(self, kind: str) -> None:
        spec = parse_spec(example(kind))
        assert parse_spec(json.loads(json.dumps(spec.plain()))) == spec

    def test_whole_numbers_as_an_axis(self) -> None:
        space = {"optim.epochs": {"int": [15, 30]}}
        spec = parse(SweepSpec, example("sweep", space=space))
        assert spec.space["optim.epochs"].examples() == (15, 30)
        assert parse_spec(yaml.safe_load(spec.to_yaml())) == spec

    def test_the_order_of_arms_is_kept(self) -> None:
        arms: dict[str, Any] = {"z": {}, "a": {"positions.kind": "deterministic"}}
        spec = parse_spec(example("compare", arms=arms))
        again = parse_spec(yaml.safe_load(spec.to_yaml()))
        assert isinstance(again, ComparisonSpec)
        assert again.reference == "z"

    def test_the_whole_spec_is_written_defaults_too(self) -> None:
        written = yaml.safe_load(run().to_yaml())
        assert written["masking"]["target"]["scale"] == [0.15, 0.2]
        assert list(written)[:2] == ["kind", "spec_version"]


class TestDigest:
    def test_golden_digests(self, golden: Callable[[str, Any], None]) -> None:
        specs = {kind: parse_spec(example(kind)) for kind in EXAMPLES}
        digests = {kind: spec.digest() for kind, spec in specs.items()}
        for kind, spec in specs.items():
            if isinstance(spec, RunSpec):
                digests[f"{kind} run"] = spec.run_digest(FACTS)
        golden("digests", digests)

    def test_a_field_at_its_default_changes_nothing(self) -> None:
        said = run(
            seed=0,
            positions={"kind": "stochastic", "noise_std": 0.25},
            optim={"epochs": 600, "lr": 8e-4},
            evals=[{"kind": "knn", "k": 20}, {"kind": "linear"}],
        )
        assert said.digest() == run().digest()
        assert said.run_digest(FACTS) == run().run_digest(FACTS)

    def test_the_order_of_fields_and_the_kind_of_number_change_nothing(self) -> None:
        one = run(optim={"lr": 1, "epochs": 20}, seed=4)
        other = parse(RunSpec, dict(reversed(list(small(seed=4.0).items()))) | {
            "optim": {"epochs": 20, "lr": 1.0}
        })  # fmt: skip
        assert one.digest() == other.digest()

    @pytest.mark.parametrize(
        "changes",
        [
            {"name": "y"},
            {"tracking": {"experiment": "other", "tags": {"a": "b"}}},
            {"compute": {"workers": 4, "cpus_per_worker": 2}},
            {"checkpoint": {"every_epochs": None, "keep": 1}},
            {"evals": []},
            {"collapse": "stop"},
            {"data": {"train": "digits", "loader_threads": 8}},
            {"data": {"train": "digits", "eval": {"train": "a", "test": "b"}}},
        ],
    )
    def test_run_digest_leaves_out_what_cannot_change_the_weights(
        self, changes: dict[str, Any]
    ) -> None:
        assert run(**changes).run_digest(FACTS) == run().run_digest(FACTS)
        assert run(**changes).digest() != run().digest()

    @pytest.mark.parametrize(
        "changes",
        [
            {"seed": 1},
            {"positions": {"noise_std": 0.3}},
            {"positions": {"kind": "deterministic"}},
            {"masking": {"min_keep": 9}},
            {"model": {"depth": 3}},
            {"optim": {"lr": 1e-3}},
            {"data": {"train": "digits", "crop_scale": [0.5, 1.0]}},
            {"data": {"train": "digits", "shuffle": {"window_shards": 2}}},
            {"data": {"train": "digits", "decode": "scaled"}},
        ],
    )
    def test_run_digest_holds_what_can(self, changes: dict[str, Any]) -> None:
        assert run(**changes).run_digest(FACTS) != run().run_digest(FACTS)

    def test_run_digest_holds_the_facts_of_the_machine(self) -> None:
        assert run().run_digest({**FACTS, "precision": "bf16"}) != run().run_digest(FACTS)

    def test_which_arm_is_the_reference_counts(self) -> None:
        arms: dict[str, Any] = {"a": {}, "b": {"positions.kind": "deterministic"}}
        swapped = dict(reversed(list(arms.items())))
        digests = {parse_spec(example("compare", arms=a)).digest() for a in (arms, swapped)}
        assert len(digests) == 2


class TestSchema:
    @pytest.mark.parametrize("kind", EXAMPLES)
    def test_every_field_says_what_it_is(self, kind: str) -> None:
        schema = KINDS[kind].model_json_schema()
        objects = {kind: schema, **schema["$defs"]}
        silent = []
        for name, described in objects.items():
            for field, about in described.get("properties", {}).items():
                # Pydantic leaves the words out where they are those of the object itself.
                target = objects.get(about.get("$ref", "").rpartition("/")[2], {})
                if not about.get("description", target.get("description")):
                    silent.append(f"{name}.{field}")
        assert silent == []
        assert schema["additionalProperties"] is False

    def test_an_evaluation_has_no_training_in_it(self) -> None:
        assert "OptimSpec" not in EvaluationSpec.model_json_schema()["$defs"]


def test_one_mistake_in_a_base_is_told_once() -> None:
    base = small(
        data={"train": "digits", "image_size": 16},
        model={"encoder": "custom", "width": 8, "depth": 1, "heads": 2, "patch_size": 4},
        masking={"min_keep": 2},
    )
    with pytest.raises(SpecError) as refused:
        parse_spec({**example("sweep"), "base": base})
    assert [problem.dotted for problem in refused.value.problems] == ["base.masking.min_keep"]
