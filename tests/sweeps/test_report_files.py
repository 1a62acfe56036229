"""Pages, pictures and tables that a study leaves, from made-up ledgers."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from matplotlib.image import imread

from stoplab_platform.exits import Exit
from stoplab_platform.files import read_json, write_json
from stoplab_platform.ledger import Ledger
from stoplab_platform.paths import JobFolder
from stoplab_sweeps import pictures, report_main
from stoplab_sweeps.compare import result
from stoplab_sweeps.curves import learning_curves
from stoplab_sweeps.outcome import sum_up
from stoplab_sweeps.plots import comparison_plots
from stoplab_sweeps.report import comparison_markdown
from stoplab_sweeps.report_html import comparison_html
from stoplab_sweeps.report_latex import comparison_tex
from support_reports import STEPS, compared, spool, swept
from support_studies import comparison, finished

EXTRA: dict[str, Any] = {
    "secondary": [{"metric": "test/linear_top1", "arm": "stochastic", "delta": 0.0123,
                   "ci95": [0.01, 0.02], "p_t": 0.03, "p_holm": 0.06, "n_blocks": 3, "d_z": 1.5}],
    "per_image": {"arms": {"stochastic": [{"seed": 0, "only_reference": 11, "only_other": 31,
                                           "p_mcnemar": 0.004, "n_images": 359}]},
                  "test_set_se": 0.0071, "seed_sd": 0.0042, "note": "Seeds decide."},
    "sequential": {"looks": [5, 8, 12], "spending": "obrien_fleming", "look": 1,
                   "alpha_spent": 0.001, "alpha_here": 0.0011, "final": False},
    "warnings": ["three blocks cannot get a sign-flip p below 0.25"],
}  # fmt: skip


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> JobFolder:
    return compared(tmp_path_factory.mktemp("pair"))[1]


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> JobFolder:
    return swept(tmp_path_factory.mktemp("grid"))[1]


def is_picture(path: Path) -> bool:
    """A PNG that is large enough for a slide, and not all of one colour."""
    pixels = imread(path)
    return min(pixels.shape[:2]) > 400 and pixels.std() > 0.01


def figures(page: str) -> list[Any]:
    found = re.findall(r'<script type="application/json"[^>]*>(.*?)</script>', page, re.DOTALL)
    return [json.loads(text) for text in found]


class TestCurves:
    def test_they_are_means_over_seeds_with_a_band(self, pair: JobFolder) -> None:
        curves = learning_curves(pair, Ledger(pair).cells())
        assert set(curves) == {"train/loss", "val/knn_top1"}
        loss = curves["train/loss"]["deterministic"]
        assert loss["step"] == list(STEPS)
        assert loss["mean"][0] == pytest.approx(2.1)
        assert loss["high"][0] - loss["mean"][0] == pytest.approx(0.1)

    def test_long_ones_are_thinned_and_keep_their_end(self, tmp_path: Path) -> None:
        folder = JobFolder(tmp_path)
        cell = finished("stochastic", 0, 0.5)
        lines = [{"verb": "metrics", "step": s, "values": {"train/loss": 1.0}} for s in range(999)]
        spool(folder.run(cell.id), {})
        text = "".join(json.dumps(line) + "\n" for line in lines)
        folder.run(cell.id).spool.write_text(text)
        steps = learning_curves(folder, [cell])["train/loss"]["stochastic"]["step"]
        assert 100 < len(steps) <= 200
        assert steps[-1] == 998

    def test_runs_without_a_spool_have_none(self, tmp_path: Path) -> None:
        assert learning_curves(JobFolder(tmp_path), [finished("stochastic", 0, 0.5)]) == {}


class TestComparison:
    def test_all_files_are_there_and_go_to_the_tracker(self, tmp_path: Path) -> None:
        spec, folder = compared(tmp_path)
        outcome = sum_up(spec, folder, Ledger(folder).cells())
        names = {path.name for path in outcome.files}
        assert names == {
            "comparison.json", "comparison.md", "comparison.html", "comparison.png",
            "comparison.tex", "trials.csv", "trials.parquet",
        }  # fmt: skip
        assert all(path.exists() for path in outcome.files)
        assert is_picture(folder.comparison_png)

    def test_the_page_stands_alone(self, pair: JobFolder) -> None:
        page = pair.comparison_html.read_text()
        policy = re.search(r'Content-Security-Policy" content="([^"]+)"', page)
        assert policy is not None
        assert "default-src &#39;none&#39;" in policy[1]
        tags = re.findall(r"<(?:script|link|img|iframe)[^>]*\s(?:src|href)=\"([^\"]*)\"", page)
        assert tags == ["data:,"]

    def test_the_page_shows_verdict_plots_and_numbers(self, pair: JobFolder) -> None:
        page, judged = pair.comparison_html.read_text(), read_json(pair.comparison)
        assert f"{judged['sentence']}." in page
        assert "For orientation" in page
        assert "init/knn_top1 0.4000" in page
        intervals, slopes, *curves = figures(page)
        assert intervals["data"][1]["x"] == [pytest.approx(judged["delta"], rel=1e-4)]
        assert len(slopes["data"]) == judged["n_blocks"] + 1
        assert [one["layout"]["yaxis"]["title"]["text"].split()[0] for one in curves] == [
            "train/loss",
            "val/knn_top1",
        ]

    def test_what_the_statistics_add_is_shown(self) -> None:
        judged = {**result(comparison(), [finished(a, s, 0.5 + s / 10) for s in (0, 1, 2)
                  for a in ("deterministic", "stochastic")]), **EXTRA}  # fmt: skip
        for text in (comparison_html("n", judged, {}), comparison_markdown(comparison(), judged)):
            for word in ("test/linear_top1", "+0.0123", "0.0600", "31", "0.0040", "0.0071",
                         "Seeds decide.", "5, 8, 12", "below 0.25"):  # fmt: skip
                assert word in text, word

    def test_names_cannot_break_the_page(self) -> None:
        arms = {"a": {"positions.kind": "deterministic"}, "b": {}}
        judged = result(comparison(arms=arms), [])
        page = comparison_html("<b>&</script>", {**judged, "sentence": "<i>x</i>"}, {})
        assert "<b>" not in page.split("<script>")[0]
        assert "<i>" not in page.split("<script>")[0]
        plots = comparison_plots({**judged, "metric": "</script>"}, {})
        assert plots, "half a result has plots too"

    def test_half_a_result_has_its_files(self, tmp_path: Path) -> None:
        spec = comparison()
        folder = JobFolder(tmp_path)
        cells = [finished("deterministic", 0, 0.5)]
        outcome = sum_up(spec, folder, cells)
        assert folder.comparison_html in outcome.files
        assert folder.comparison_png in outcome.files
        assert (
            "half blocks" in folder.comparison_html.read_text().lower()
            or "block" in (read_json(folder.comparison)["sentence"])
        )

    def test_latex_is_escaped_and_complete(self, pair: JobFolder) -> None:
        text = comparison_tex("50 % of_it & {more}", read_json(pair.comparison))
        assert r"50 \% of\_it \& \{more\}" in text
        assert text.count(r"\begin") == text.count(r"\end") == 2
        head, *body = [line for line in text.splitlines() if line.endswith(r"\\")]
        assert {line.count("&") - line.count(r"\&") for line in (head, *body)} == {6}
        assert "deterministic & 3 &" in text
        assert pair.comparison_tex.read_text().startswith("% Needs")

    def test_a_picture_that_fails_costs_only_itself(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        def broken(*_: object) -> None:
            raise ValueError("no ink")

        spec, folder = compared(tmp_path)
        monkeypatch.setattr(pictures, "comparison_png", broken)
        with caplog.at_level("WARNING", logger="stoplab"):
            outcome = sum_up(spec, folder, Ledger(folder).cells())
        assert folder.comparison_png not in outcome.files
        assert not folder.comparison_png.exists(), "an old picture would show old numbers"
        assert folder.comparison_html in outcome.files
        assert "no comparison.png: ValueError: no ink" in caplog.text

    def test_a_study_that_is_stopped_does_not_wait_for_pictures(self, tmp_path: Path) -> None:
        spec, folder = compared(tmp_path)
        write_json(folder.stop, {"intent": "PAUSED"})
        outcome = sum_up(spec, folder, Ledger(folder).cells())
        assert folder.comparison in outcome.files
        assert folder.comparison_html not in outcome.files


class TestSurface:
    def test_all_files_are_there(self, grid: JobFolder) -> None:
        found = read_json(grid.surface)
        assert found["metric"] == "val/knn_top1"
        assert found["left_out"] == 1
        assert is_picture(grid.surface_png)
        maps = figures(grid.surface_html.read_text())
        assert [one["data"][0]["type"] for one in maps[:3]] == ["contour"] * 3
        assert maps[3]["data"][0]["type"] == "bar"
        assert grid.trials_parquet.exists()

    def test_one_axis_is_drawn_as_a_curve(self, tmp_path: Path) -> None:
        spec, folder = swept(tmp_path)
        cells = [c for c in Ledger(folder).cells() if c.point["masking_ratio"] == 0.6]
        sum_up(spec, folder, cells)
        first, second = figures(folder.surface_html.read_text())[:2]
        assert first["data"][1]["type"] == "scatter"
        assert second["layout"]["yaxis"]["title"]["text"] == "difference in val/knn_top1"
        assert is_picture(folder.surface_png)

    def test_without_a_surface_only_the_reason_is_left(self, tmp_path: Path) -> None:
        spec, folder = swept(tmp_path)
        outcome = sum_up(spec, folder, Ledger(folder).cells()[:1])
        assert "are needed" in read_json(folder.surface)["reason"]
        assert folder.surface in outcome.files
        assert not folder.surface_html.exists()
        assert not folder.surface_png.exists()


class TestAnew:
    def run(self, folder: JobFolder, *words: str) -> Exit:
        return report_main.main([str(folder.root), *words])

    def test_text_goes_to_the_terminal(self, pair: JobFolder, capsys: Any) -> None:
        assert self.run(pair, "--format", "md") is Exit.OK
        assert capsys.readouterr().out == pair.comparison_page.read_text()
        assert self.run(pair, "--format", "tex") is Exit.OK
        assert r"\toprule" in capsys.readouterr().out
        assert self.run(pair, "--format", "json") is Exit.OK
        assert json.loads(capsys.readouterr().out) == read_json(pair.comparison)

    @pytest.mark.parametrize("wanted", ["html", "png"])
    def test_pages_and_pictures_are_made_anew(
        self, pair: JobFolder, wanted: str, capsys: Any
    ) -> None:
        path = {"html": pair.comparison_html, "png": pair.comparison_png}[wanted]
        before = path.read_bytes()
        path.unlink()
        assert self.run(pair, "--format", wanted) is Exit.OK
        assert capsys.readouterr().out.strip() == str(path)
        assert path.read_bytes() == before

    def test_into_a_file(self, pair: JobFolder, grid: JobFolder, tmp_path: Path) -> None:
        for folder, wanted in ((pair, "tex"), (pair, "png"), (grid, "html"), (grid, "png")):
            out = tmp_path / f"{folder.root.name}.{wanted}"
            assert self.run(folder, "--format", wanted, "--out", str(out)) is Exit.OK
            assert out.stat().st_size > 100

    @pytest.mark.parametrize("wanted", ["md", "json", "png"])
    def test_a_folder_is_no_file(
        self, pair: JobFolder, tmp_path: Path, wanted: str, capsys: Any
    ) -> None:
        assert self.run(pair, "--format", wanted, "--out", str(tmp_path)) is Exit.BAD_INPUT
        assert capsys.readouterr().err == f"out: {tmp_path}: Is a directory\n"

    def test_what_there_is_not(
        self, pair: JobFolder, grid: JobFolder, tmp_path: Path, capsys: Any
    ) -> None:
        assert self.run(JobFolder(tmp_path), "--format", "md") is Exit.BAD_INPUT
        assert "is not a job's folder" in capsys.readouterr().err
        assert self.run(grid, "--format", "tex") is Exit.BAD_INPUT
        assert "json, html or png" in capsys.readouterr().err
        pair.comparison.rename(tmp_path / "away.json")
        assert self.run(pair, "--format", "md") is Exit.BAD_INPUT
        (tmp_path / "away.json").rename(pair.comparison)
        assert "no result yet" in capsys.readouterr().err
