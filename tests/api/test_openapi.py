from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from stoplab_api import answers, bodies, examples, findings
from stoplab_api.app import create_app
from stoplab_platform.settings import Settings
from stoplab_platform.specs import parse_spec

GOLDEN = Path(__file__).parents[1] / "golden" / "openapi.json"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    home = tmp_path_factory.mktemp("home")
    made: dict[str, Any] = create_app(Settings(home=home)).openapi()
    assert list(home.iterdir()) == [], "a page costs no database"
    return json.loads(json.dumps(made))


def test_it_is_as_published(page: dict[str, Any]) -> None:
    """Renew with `python -m stoplab_api.openapi > tests/golden/openapi.json`."""
    assert page == json.loads(GOLDEN.read_text())


def test_the_command_prints_it(page: dict[str, Any], tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "stoplab_api.openapi"],
        capture_output=True, check=True, cwd=tmp_path, text=True,
    )  # fmt: skip
    assert json.loads(done.stdout) == page
    assert done.stdout == GOLDEN.read_text()


def test_its_head(page: dict[str, Any]) -> None:
    assert page["openapi"].startswith("3.1")
    (scheme,) = page["components"]["securitySchemes"].values()
    assert (scheme["type"], scheme["scheme"]) == ("http", "bearer")


def operations(page: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    return [
        (f"{method} {path}", operation)
        for path, methods in page["paths"].items()
        for method, operation in methods.items()
    ]


def test_every_call_says_what_may_go_wrong(page: dict[str, Any]) -> None:
    for name, operation in operations(page):
        responses = operation["responses"]
        assert "500" in responses, name
        if "security" in operation:
            assert {"400", "401", "503"} <= responses.keys(), name
        for status, response in responses.items():
            if int(status) >= 400:
                assert "application/problem+json" in response["content"], (name, status)
    assert "HTTPValidationError" not in json.dumps(page)


def test_every_reference_leads_somewhere(page: dict[str, Any]) -> None:
    def references(node: Any) -> set[str]:
        if isinstance(node, dict):
            own = {node["$ref"]} if isinstance(node.get("$ref"), str) else set()
            return own.union(*(references(inner) for inner in node.values()))
        return (
            set().union(*(references(inner) for inner in node)) if isinstance(node, list) else set()
        )

    for reference in references(page):
        node: Any = page
        for part in reference.removeprefix("#/").split("/"):
            node = node[part]


def test_bodies_have_examples_that_fit(page: dict[str, Any]) -> None:
    seen = 0
    for name, operation in operations(page):
        if "requestBody" not in operation:
            continue
        content = operation["requestBody"]["content"]["application/json"]
        schema = {**content["schema"], "components": page["components"]}
        assert content["examples"], name
        for example in content["examples"].values():
            jsonschema.validate(example["value"], schema)
            seen += 1
    assert seen >= 7


@pytest.mark.parametrize("kind", list(examples.SUBMITS))
def test_the_example_specs_are_specs(kind: str) -> None:
    assert parse_spec(examples.SUBMITS[kind]["spec"]).kind == kind


@pytest.mark.parametrize(
    ("model", "example"),
    [
        (bodies.JobListBody, examples.JOBS),
        (bodies.DryRunBody, examples.DRY_RUN),
        (findings.EstimateBody, examples.ESTIMATE),
        (findings.HindsightBody, examples.HINDSIGHT),
        (findings.MetricListBody, examples.METRICS),
        (findings.SeriesListBody, examples.SERIES),
        (findings.ArtifactListBody, examples.ARTIFACTS),
        (answers.EventListBody, examples.EVENTS),
        (answers.ProjectEventListBody, examples.PROJECT_EVENTS),
        (answers.TrialListBody, examples.TRIALS),
        (answers.MeBody, examples.ME),
        (answers.TokenListBody, examples.TOKENS),
        (answers.FreshTokenBody, examples.FRESH_TOKEN),
        (answers.ClusterBody, examples.CLUSTER),
        (answers.ReadyBody, examples.READY),
    ],
)
def test_the_example_answers_are_answers(model: type[bodies.Told], example: Any) -> None:
    assert model.model_validate(example).model_extra == {}
