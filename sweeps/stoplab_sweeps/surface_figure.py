"""A response surface as one picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from stoplab_sweeps.words import PALETTE

NOISE, RATIO = "noise scale σ (noise_std)", "effective masked fraction"
RIDGE, NEXT, SURE_LINE = "#D55E00", "#CC79A7", "#E69F00"
SURE = 1.96
DPI = 120


def surface_png(name: str, found: Mapping[str, Any], path: Path) -> None:
    """Writes the metric, and beside it the difference to noise 0 if known."""
    assert found["mean"] is not None, "the caller has looked"
    panels = 1 if found["delta"] is None else 2
    figure = Figure(figsize=(6.8 * panels, 5.6), layout="constrained")
    FigureCanvasAgg(figure)
    left, *right = figure.subplots(1, panels, squeeze=False)[0]
    figure.suptitle(f"{name}: {found['metric']}", fontsize=14)
    flat = [key for key in ("noise_std", "ratio") if len(found["axes"][key]) == 1]
    title = "Difference to noise 0"
    if flat:
        along = "ratio" if flat == ["noise_std"] else "noise_std"
        _curve(left, found, found, found["points"], along)
        left.set_ylabel(found["metric"])
        for axes in right:
            _curve(axes, found, found["delta"], found["delta_points"], along)
            axes.axhline(0, color="black", linewidth=1)
            axes.set_ylabel(f"difference in {found['metric']}")
            axes.set_title(title, fontsize=12)
    else:
        _metric(left, figure, found)
        for axes in right:
            _difference(axes, figure, found)
            axes.set_title(title, fontsize=12)
    draft = path.with_name(f".{path.name}")
    figure.savefig(draft, dpi=DPI, format="png")
    draft.replace(path)


def _metric(axes: Axes, figure: Figure, found: Mapping[str, Any]) -> None:
    heights = _grid(axes, found, found["mean"], cmap="viridis")
    figure.colorbar(heights, ax=axes, label=found["metric"])
    axes.plot([one["noise_std"] for one in found["ridge"]],
              [one["ratio"] for one in found["ridge"]],
              color=RIDGE, linewidth=3, linestyle="--", label="ridge: best σ")  # fmt: skip
    axes.scatter([one["noise_std"] for one in found["next_points"]],
                 [one["ratio"] for one in found["next_points"]],
                 color=NEXT, marker="*", s=260, edgecolors="white", label="measure next",
                 zorder=4, clip_on=False)  # fmt: skip
    _dots(axes, found["points"])
    axes.set_title("Gaussian process through the measured points", fontsize=12)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=3, frameon=False)


def _difference(axes: Axes, figure: Figure, found: Mapping[str, Any]) -> None:
    mean = np.array(found["delta"]["mean"])
    bound = float(np.abs(mean).max()) or 1.0
    levels = np.linspace(-bound, bound, 21)
    heights = _grid(axes, found, mean, cmap="RdBu", levels=levels)
    figure.colorbar(heights, ax=axes, label=f"difference in {found['metric']}")
    if found["beyond_doubt"] is None:
        axes.plot([], [], color="none", label="one run a place: nothing is beyond doubt")
    else:
        _sure(axes, found)
    _dots(axes, found["delta_points"])
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=2, frameon=False)


def _sure(axes: Axes, found: Mapping[str, Any]) -> None:
    sure = np.array(found["beyond_doubt"], dtype=float)
    if 0 < sure.mean() < 1:
        axes.contour(found["axes"]["noise_std"], found["axes"]["ratio"], sure, [0.5],
                     colors=SURE_LINE, linewidths=4)  # fmt: skip
    said = {0.0: "nowhere beyond doubt", 1.0: "beyond doubt everywhere"}
    axes.plot([], [], color=SURE_LINE, linewidth=4,
              label=said.get(float(sure.mean()), "improvement beyond doubt (95 %)"))  # fmt: skip


def _grid(axes: Axes, found: Mapping[str, Any], values: Any, **style: Any) -> Any:
    style.setdefault("levels", 20)
    axes.set_xlabel(NOISE)
    axes.set_ylabel(RATIO)
    return axes.contourf(found["axes"]["noise_std"], found["axes"]["ratio"], values, **style)


def _dots(axes: Axes, points: Sequence[Mapping[str, Any]]) -> None:
    axes.scatter([p["noise_std"] for p in points], [p["ratio"] for p in points], color="black",
                 s=55, edgecolors="white", linewidths=1.5, label="measured", zorder=3,
                 clip_on=False)  # fmt: skip


def _curve(
    axes: Axes,
    found: Mapping[str, Any],
    surface: Mapping[str, Any],
    points: Sequence[Mapping[str, Any]],
    along: str,
) -> None:
    x = np.array(found["axes"][along])
    mean, std = (np.array(surface[key]).reshape(-1) for key in ("mean", "std"))
    axes.plot(x, mean, color=PALETTE[0], linewidth=2.5)
    axes.fill_between(x, mean - SURE * std, mean + SURE * std, color=PALETTE[0], alpha=0.2,
                      label="95 % band")  # fmt: skip
    for number, point in enumerate(points):
        low, high = point["ci95"] or (point["mean"], point["mean"])
        reach = [[point["mean"] - low], [high - point["mean"]]]
        axes.errorbar(point[along], point["mean"], yerr=reach, fmt="o", color=RIDGE, capsize=4,
                      label="measured" if number == 0 else None)  # fmt: skip
    axes.set_xlabel(NOISE if along == "noise_std" else RATIO)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
