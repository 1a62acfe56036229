"""Pictures for slides and for MLflow, drawn by matplotlib."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from stoplab_sweeps.curves import Curve
from stoplab_sweeps.words import PALETTE

GREY = "#8a8a8a"
DPI = 120
WIDE = 46  # characters of a headline's line above one panel


def comparison_png(
    name: str,
    judged: Mapping[str, Any],
    curves: Mapping[str, Mapping[str, Curve]],
    path: Path,
) -> None:
    """Writes one picture: each seed, the difference with its interval, a learning curve."""
    shown = _shown_curve(judged, curves)
    panels = 3 if shown else 2
    figure = Figure(figsize=(5.2 * panels, 5.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = list(figure.subplots(1, panels))
    figure.suptitle(
        _headline(name, judged["sentence"], WIDE * panels), fontsize=13, x=0.01, ha="left"
    )
    _slopes(axes[0], judged)
    _intervals(axes[1], judged)
    if shown:
        _curves(axes[2], shown, curves[shown], list(judged["arms"]))
    for one in axes:
        one.spines[["top", "right"]].set_visible(False)
    _save(figure, path)


def _slopes(axes: Axes, judged: Mapping[str, Any]) -> None:
    arms = list(judged["arms"])
    places = np.arange(len(arms))
    for block in judged["blocks"]:
        values = [np.nan if (v := block["values"][arm]) is None else v for arm in arms]
        axes.plot(places, values, color=GREY, linewidth=1.2, alpha=0.7, zorder=1)
        axes.scatter(places, values, c=_colors(arms), s=36, zorder=2)
    means = [np.nan if (m := judged["arms"][arm]["mean"]) is None else m for arm in arms]
    axes.plot(places, means, color="black", linewidth=2.5, linestyle=":", zorder=3, label="mean")
    axes.scatter(places, means, c=_colors(arms), s=130, marker="D", edgecolors="black", zorder=4)
    axes.set_xticks(places, arms)
    axes.set_xlim(-0.4, len(arms) - 0.6)
    axes.set_ylabel(judged["metric"])
    axes.set_title("Each line is one seed", fontsize=11)
    axes.legend(frameon=False)


def _intervals(axes: Axes, judged: Mapping[str, Any]) -> None:
    others = list(judged["comparisons"])
    smallest = judged["min_effect"]
    if smallest > 0:
        axes.axvspan(-smallest, smallest, color=GREY, alpha=0.2, label="too small to matter")
    axes.axvline(0, color="black", linewidth=1)
    for row, arm in enumerate(others):
        one, color = judged["comparisons"][arm], _colors(judged["arms"])[row + 1]
        deltas = [b["deltas"][arm] for b in judged["blocks"] if b["deltas"][arm] is not None]
        axes.scatter(deltas, [row + 0.12] * len(deltas), color=color, alpha=0.5, marker="|", s=160)
        if one["delta"] is None:
            continue
        low, high = one["ci95"] or (one["delta"], one["delta"])
        reach = [[one["delta"] - low], [high - one["delta"]]]
        axes.errorbar(one["delta"], row, xerr=reach, fmt="D", color=color, markersize=10,
                      elinewidth=3.5, capsize=8, capthick=2.5)  # fmt: skip
    axes.set_yticks(range(len(others)), others)
    axes.set_ylim(-0.6, len(others) - 0.4)
    axes.set_xlabel(f"difference in {judged['metric']}\n(arm − {judged['reference']})")
    axes.set_title("Mean difference, 95 % interval, every seed", fontsize=11)
    if smallest > 0:
        axes.legend(frameon=False, loc="upper left")


def _curves(axes: Axes, metric: str, curves: Mapping[str, Curve], arms: Sequence[str]) -> None:
    for arm, curve in curves.items():
        color = PALETTE[list(arms).index(arm) % len(PALETTE)]
        axes.plot(curve["step"], curve["mean"], color=color, linewidth=2, label=arm)
        axes.fill_between(curve["step"], curve["low"], curve["high"], color=color, alpha=0.2)
    axes.set_xlabel("optimizer step")
    axes.set_ylabel(metric)
    axes.set_title("While training (mean ± 1 sd of seeds)", fontsize=11)
    axes.legend(frameon=False)


def _shown_curve(
    judged: Mapping[str, Any], curves: Mapping[str, Mapping[str, Curve]]
) -> str | None:
    """The metric's own on the validation split, else any other, else the loss."""
    wanted = f"val/{judged['metric'].partition('/')[2]}"
    order = [wanted, *(name for name in curves if name != "train/loss"), "train/loss"]
    return next((name for name in order if name in curves), None)


def _colors(arms: Sequence[str] | Mapping[str, Any]) -> list[str]:
    return [PALETTE[index % len(PALETTE)] for index in range(len(arms))]


def _headline(name: str, sentence: str, width: int) -> str:
    return "\n".join([name, *textwrap.wrap(f"{sentence}.", width)])


def _save(figure: Figure, path: Path) -> None:
    draft = path.with_name(f".{path.name}")
    figure.savefig(draft, dpi=DPI, format="png")
    draft.replace(path)
