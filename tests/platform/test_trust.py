"""What a spec may refer to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from stoplab_platform.errors import SpecError
from stoplab_platform.secret_store import Secrets
from stoplab_platform.service import Jobs
from stoplab_platform.settings import DATA_SCHEMES, Settings
from stoplab_platform.specs import parse_spec
from stoplab_platform.specs.places import is_inside, is_place, why_refused
from support_store import ANA, STRANGER, compare_spec, lab_settings, open_store, run_spec

ROOTS = [Path("/data"), Path("/sets")]


@pytest.mark.parametrize(
    "place",
    [
        "digits",
        "digits/train",
        "/data/a.tar",
        "/data/train-{000..009}.tar",
        "/sets/{a,b}/x.tar",
        "/data/*/x.tar",
        "s3://box/a.tar",
        "file:///data/a.tar",
        "/data",
    ],
)
def test_allowed(place: str) -> None:
    assert why_refused(place, ROOTS, DATA_SCHEMES) is None


@pytest.mark.parametrize(
    ("place", "why"),
    [
        ("/etc/passwd", "below /data, /sets"),
        ("/data/../etc/passwd", r"without `\.\.`"),
        ("/data/{a,../../etc}/x", r"without `\.\.`"),
        ("/data{,2}/x.tar", "below"),
        ("{/data,/etc}/x", "below"),
        ("/dat*/x", "below"),
        ("/data2/x.tar", "below"),
        ("relative.tar", "below"),
        ("~/x.tar", "below"),
        ("file:///etc/passwd", "below"),
        ("pipe:cat /data/a.tar", "commands"),
        ("zip://a::s3://b", "chained"),
        ("ftp://host/a.tar", "no others"),
        ("https://ana:word@host/a.tar", "credentials"),
    ],
)
def test_refused(place: str, why: str) -> None:
    with pytest.raises(AssertionError, match=why):
        raise AssertionError(why_refused(place, ROOTS, DATA_SCHEMES))


def test_links_are_followed(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    for folder in (root, outside):
        folder.mkdir()
    (root / "out").symlink_to(outside)
    (tmp_path / "in").symlink_to(root)
    assert is_inside(tmp_path / "in" / "x", [root])
    assert not is_inside(root / "out" / "x", [root])
    assert why_refused(f"{root}/out/x.tar", [root], DATA_SCHEMES) is not None
    assert is_inside(outside, None)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (("data", "train"), True),
        (("data", "train", 3), True),
        (("base", "data", "eval", "test"), True),
        (("arms", "a", "data.train"), True),
        (("arms", "a", "data", "train"), True),
        (("space", "data.train", "grid", 0), True),
        (("space", "data", "grid", 0, "train"), True),
        (("space", "data", "choice", 0, "eval", "test"), True),
        (("space", "data", "grid", 0, "image_size"), False),
        (("checkpoint", "path"), True),
        (("model", "init_from"), True),
        (("arms", "a", "model.init_from", "path"), True),
        (("model", "init_from", "job"), False),
        (("evals", 2, "list"), True),
        (("base", "evals", 0, "list"), True),
        (("space", "evals.0.list", "grid", 1), True),
        (("protocols", 0, "list"), True),
        (("evals", 2, "k"), False),
        (("checkpoint", "job"), False),
        (("name",), False),
        (("arms", "data.train"), False),
    ],
)
def test_which_fields_are_places(path: tuple[Any, ...], expected: bool) -> None:
    assert is_place(path) is expected


class TestSubmit:
    def test_places_outside_the_roots(self, home: Path) -> None:
        settings = lab_settings(home, data_roots=ROOTS)
        judged = {"train": "digits/train", "test": "digits/test"}
        base = run_spec(data={"train": "digits", "eval": judged}).plain()
        arms = {
            "a": {"data.train": "/etc/a.tar"},
            "b": {"data.train": ["/data/{0..3}.tar", "/tmp/c"]},
        }
        with open_store(settings.database) as store:
            jobs = Jobs(store, settings)
            assert jobs.submit(ANA, run_spec()).job.name == "bar"
            with pytest.raises(SpecError) as caught:
                jobs.submit(ANA, compare_spec(base=base, arms=arms))
        pointers = [problem.pointer() for problem in caught.value.problems]
        assert pointers == ["/arms/a/data.train", "/arms/b/data.train/1"]

    def test_unknown_secrets(self, home: Path) -> None:
        settings = lab_settings(home)
        spec = run_spec(data={"train": "digits", "storage": "secret://bucket"})
        with open_store(settings.database) as store:
            jobs = Jobs(store, settings)
            with pytest.raises(SpecError, match="stoplab secrets set bucket") as caught:
                jobs.submit(ANA, spec)
            assert [problem.pointer() for problem in caught.value.problems] == ["/data/storage"]
            Secrets(settings).set("bucket", "{}")
            jobs.submit(ANA, spec)
            with pytest.raises(SpecError):
                jobs.submit(STRANGER, spec)
            elsewhere = lab_settings(home, secrets_on_nodes=True)
            Jobs(store, elsewhere).submit(STRANGER, spec)

    def test_another_projects_checkpoint_does_not_exist(self, home: Path) -> None:
        settings = lab_settings(home)
        with open_store(settings.database) as store:
            jobs = Jobs(store, settings)
            job = jobs.submit(ANA, run_spec()).job
            spec = parse_spec(
                {
                    "kind": "evaluate",
                    "name": "probe",
                    "checkpoint": {"job": job.id},
                    "data": {"train": "digits/train", "test": "digits/test", "image_size": 16},
                }
            )
            jobs.submit(ANA, spec)
            with pytest.raises(SpecError, match=f"no job {job.id}") as caught:
                jobs.submit(STRANGER, spec)
            assert [problem.pointer() for problem in caught.value.problems] == ["/checkpoint/job"]
            spec = run_spec(model={"init_from": {"job": job.id}})
            jobs.submit(ANA, spec)
            with pytest.raises(SpecError, match=f"no job {job.id}") as caught:
                jobs.submit(STRANGER, spec)
        pointers = [problem.pointer() for problem in caught.value.problems]
        assert pointers == ["/model/init_from/job"]


def test_lists_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Settings().data_roots is None
    monkeypatch.setenv("STOPLAB_DATA_ROOTS", "/data:/sets")
    monkeypatch.setenv("STOPLAB_DATA_SCHEMES", "s3,https")
    assert Settings().data_roots == (Path("/data"), Path("/sets"))
    assert Settings().data_schemes == ("s3", "https")


def test_storage_is_a_reference_and_no_part_of_the_weights() -> None:
    with pytest.raises(SpecError, match="storage"):
        run_spec(data={"train": "digits", "storage": "my-password"})
    plain, named = run_spec(), run_spec(data={"train": "digits", "storage": "secret://a"})
    assert plain.run_digest({}) == named.run_digest({})  # type: ignore[union-attr]
    assert plain.digest() != named.digest()
    assert named.data.eval_data().storage is None  # type: ignore[union-attr]
