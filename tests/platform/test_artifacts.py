from __future__ import annotations

from pathlib import Path

import pytest

from stoplab_platform.artifacts import artifacts, find_artifact
from stoplab_platform.paths import Home, JobFolder

MEANT = (
    "comparison.html",
    "comparison.json",
    "runs/a-s0/artifacts/deep/er.png",
    "runs/a-s0/artifacts/masks.png",
    "runs/a-s0/checkpoints/step-00000120/manifest.json",
    "runs/a-s0/checkpoints/step-00000120/state.pt",
    "runs/a-s0/spec.yaml",
    "runs/a-s0/summary.json",
    "spec.yaml",
    "trials.csv",
)
NOT_MEANT = (
    ".comparison.json.1a2b3c4d",
    "cells/a-s0.json",
    "heartbeat.json",
    "logs/driver.log",
    "other.html",
    "owner.json",
    "runs/a-s0/checkpoints/.step-00000240.1a2b/state.pt",
    "runs/a-s0/checkpoints/loose.pt",
    "runs/a-s0/checkpoints/step-00000120/deeper/x",
    "runs/a-s0/logs/rank-0.log",
    "runs/a-s0/spool.jsonl",
    "runs/a-s0/spool.sent.json",
    "runs/loose.json",
    "tune/state.json",
)


@pytest.fixture
def folder(home: Path) -> JobFolder:
    made = Home(home).job("j_1")
    for path in (*MEANT, *NOT_MEANT):
        file = made.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(path)
    return made


def test_the_list_names_what_is_meant_for_people(folder: JobFolder) -> None:
    found = artifacts(folder)
    assert tuple(one.path for one in found) == MEANT
    assert all(one.bytes == len(one.path) for one in found)


@pytest.mark.parametrize("path", MEANT)
def test_what_is_listed_is_found(folder: JobFolder, path: str) -> None:
    assert find_artifact(folder, path) == folder.root / path


@pytest.mark.parametrize("path", NOT_MEANT)
def test_what_is_not_listed_is_not_found(folder: JobFolder, path: str) -> None:
    assert find_artifact(folder, path) is None


@pytest.mark.parametrize(
    "path",
    [
        "", ".", "..", "/", "//spec.yaml", "spec.yaml/", "./spec.yaml", "runs/../spec.yaml",
        "../j_2/spec.yaml", "../../tokens/local", "/etc/passwd", "spec.yaml\0", "\0",
        "runs/a-s0/artifacts/../spool.jsonl", "runs/a-s0/artifacts/../../../owner.json",
        "runs\\a-s0\\spec.yaml", "runs/a-s0/artifacts", "runs", "x" * 5000, "a/" * 3000,
        "runs/a-s0/artifacts/" + "x" * 300,
    ],
)  # fmt: skip
def test_no_path_leads_elsewhere(folder: JobFolder, path: str) -> None:
    other = folder.root.parent / "j_2" / "spec.yaml"
    other.parent.mkdir()
    other.write_text("secret")
    assert find_artifact(folder, path) is None


def test_links_are_no_artifacts(folder: JobFolder, tmp_path: Path) -> None:
    outside = tmp_path / "secret"
    outside.mkdir()
    (outside / "key").write_text("secret")
    pictures = folder.run("a-s0").artifacts
    (pictures / "link").symlink_to(outside / "key")
    (pictures / "inside").symlink_to(folder.root / "owner.json")
    (pictures / "away").symlink_to(outside)
    folder.comparison_png.symlink_to(outside / "key")
    folder.runs.joinpath("linked").symlink_to(outside)
    (outside / "spec.yaml").write_text("secret")
    assert tuple(one.path for one in artifacts(folder)) == MEANT
    for path in (
        "runs/a-s0/artifacts/link",
        "runs/a-s0/artifacts/inside",
        "runs/a-s0/artifacts/away/key",
        "comparison.png",
        "runs/linked/spec.yaml",
    ):
        assert find_artifact(folder, path) is None, path


def test_a_lab_that_lies_behind_a_link(folder: JobFolder, tmp_path: Path) -> None:
    (tmp_path / "linked").symlink_to(folder.root.parent.parent)
    linked = Home(tmp_path / "linked").job("j_1")
    assert tuple(one.path for one in artifacts(linked)) == MEANT
    assert find_artifact(linked, "spec.yaml") == linked.spec


def test_a_job_without_a_folder(home: Path) -> None:
    assert artifacts(Home(home).job("j_none")) == []
    assert find_artifact(Home(home).job("j_none"), "spec.yaml") is None
