"""A response surface's plots as Plotly figures; a curve where only one axis varies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from stoplab_sweeps.words import PALETTE, ends_of, number

Figure = dict[str, Any]
NOISE, RATIO = "noise scale σ (noise_std)", "effective masked fraction"
SURE = 1.96  # standard deviations of a 95 % band
MEASURED, RIDGE, NEXT, SURE_LINE = "#000000", "#D55E00", "#CC79A7", "#E69F00"
DIVERGING = [[0, "#b2182b"], [0.25, "#ef8a62"], [0.5, "#f7f7f7"], [0.75, "#67a9cf"], [1, "#2166ac"]]
"""Blue is better, as in the picture; the colour-blind can tell the two ends apart."""


def surface_plots(found: Mapping[str, Any]) -> dict[str, Figure]:
    """Title to figure, in the order of the page; empty where there is no surface."""
    if found["mean"] is None:
        return {}
    if len(found["axes"]["noise_std"]) == 1 or len(found["axes"]["ratio"]) == 1:
        return _curves(found)
    metric, delta = found["metric"], found["delta"]
    plots = {
        metric: _map(found, found["mean"], metric, "Viridis"),
        f"Uncertainty of {metric} (one standard deviation)":
            _map(found, found["std"], "sd", "Cividis"),
    }  # fmt: skip
    plots[metric]["data"] += [_ridge(found), _next(found)]
    if delta is not None:
        title = "Difference to noise 0 at the same masked fraction"
        bound = max((abs(v) for row in delta["mean"] for v in row), default=0.0) or 1.0
        picture = _map(found, delta["mean"], "Δ", DIVERGING, points=found["delta_points"])
        picture["data"][0] |= {"zmin": -bound, "zmax": bound}
        if found["beyond_doubt"] is not None:
            picture["data"].append(_doubtless(found))
        plots[title] = picture
    return plots


def importance_plot(found: Mapping[str, Any]) -> Figure | None:
    """A bar an axis; None where nothing can be said."""
    shares = found["importance"]
    if not shares:
        return None
    names = list(reversed(shares))
    bars = {
        "type": "bar", "orientation": "h", "x": [shares[name] for name in names], "y": names,
        "marker": {"color": PALETTE[0]},
    }  # fmt: skip
    layout = _layout("share of the variance between runs", "", height=120 + 40 * len(names))
    layout["yaxis"]["type"] = "category"
    return {"data": [bars], "layout": layout}


def _map(
    found: Mapping[str, Any],
    values: Any,
    name: str,
    colors: str | list[list[Any]],
    points: Sequence[Mapping[str, Any]] | None = None,
) -> Figure:
    heights = {
        "type": "contour", "x": found["axes"]["noise_std"], "y": found["axes"]["ratio"],
        "z": values, "colorscale": colors, "colorbar": {"title": {"text": name}}, "ncontours": 20,
        "line": {"width": 0.5}, "name": name,
        "hovertemplate": f"σ %{{x:.3g}}, masked %{{y:.3g}}<br>{name} %{{z:.4f}}<extra></extra>",
    }  # fmt: skip
    dots = _measured(found["points"] if points is None else points)
    return {"data": [heights, dots], "layout": _layout(NOISE, RATIO, height=480)}


def _measured(points: Sequence[Mapping[str, Any]]) -> Figure:
    return {
        "type": "scatter", "mode": "markers", "name": "measured",
        "x": [p["noise_std"] for p in points], "y": [p["ratio"] for p in points],
        "text": [_said(point) for point in points], "hoverinfo": "text",
        "marker": {"color": MEASURED, "size": 10, "line": {"color": "white", "width": 2}},
    }  # fmt: skip


def _said(point: Mapping[str, Any]) -> str:
    """A measured point when the mouse is over it."""
    ends = "" if point["ci95"] is None else f"<br>95 % interval {ends_of(point)}"
    return (
        f"σ {point['noise_std']:.3g}, masked {point['ratio']:.3g}<br>{number(point['mean'])} over "
        f"{point['n']} run(s){ends}"
    )


def _ridge(found: Mapping[str, Any]) -> Figure:
    return {
        "type": "scatter", "mode": "lines", "name": "ridge: best σ",
        "x": [one["noise_std"] for one in found["ridge"]],
        "y": [one["ratio"] for one in found["ridge"]],
        "line": {"color": RIDGE, "width": 4, "dash": "dash"},
    }  # fmt: skip


def _next(found: Mapping[str, Any]) -> Figure:
    places = found["next_points"]
    return {
        "type": "scatter", "mode": "markers+text", "name": "measure next",
        "x": [one["noise_std"] for one in places], "y": [one["ratio"] for one in places],
        "text": [str(rank + 1) for rank in range(len(places))],
        "textfont": {"color": "black", "size": 12},
        "marker": {"color": NEXT, "size": 20, "symbol": "star",
                   "line": {"color": "white", "width": 1}},
    }  # fmt: skip


def _doubtless(found: Mapping[str, Any]) -> Figure:
    """The border of the region where the improvement is beyond doubt."""
    return {
        "type": "contour", "x": found["axes"]["noise_std"], "y": found["axes"]["ratio"],
        "z": [[int(sure) for sure in row] for row in found["beyond_doubt"]],
        "contours": {"start": 0.5, "end": 0.5, "size": 1, "coloring": "none"},
        "line": {"color": SURE_LINE, "width": 5}, "showscale": False, "hoverinfo": "skip",
        "name": "improvement beyond doubt (95 %)", "showlegend": True,
    }  # fmt: skip


def _curves(found: Mapping[str, Any]) -> dict[str, Figure]:
    along = "noise_std" if len(found["axes"]["ratio"]) == 1 else "ratio"
    metric, label = found["metric"], NOISE if along == "noise_std" else RATIO
    plots = {metric: _curve(found, found, found["points"], along, (label, metric))}
    if found["delta"] is not None:
        title = "Difference to noise 0 at the same masked fraction"
        said = (label, f"difference in {metric}")
        plots[title] = _curve(found, found["delta"], found["delta_points"], along, said)
    return plots


def _curve(
    found: Mapping[str, Any],
    surface: Mapping[str, Any],
    points: Sequence[Mapping[str, Any]],
    along: str,
    said: tuple[str, str],
) -> Figure:
    x = found["axes"][along]
    mean, std = ([v for row in surface[key] for v in row] for key in ("mean", "std"))
    high, low = ([m + sign * SURE * s for m, s in zip(mean, std, strict=True)] for sign in (1, -1))
    band = {
        "type": "scatter", "mode": "lines", "x": [*x, *reversed(x)], "y": [*high, *reversed(low)],
        "fill": "toself", "fillcolor": PALETTE[0], "opacity": 0.2, "line": {"width": 0},
        "hoverinfo": "skip", "name": "95 % band",
    }  # fmt: skip
    line = {
        "type": "scatter", "mode": "lines", "x": x, "y": mean, "name": "surface",
        "line": {"color": PALETTE[0], "width": 3},
    }  # fmt: skip
    dots = _measured([{**point, "ratio": point["mean"], "noise_std": point[along]}
                      for point in points])  # fmt: skip
    dots |= {"text": [_said(point) for point in points], "marker": {"color": RIDGE, "size": 11}}
    if all(point["ci95"] for point in points):
        halves = [(point["ci95"][1] - point["ci95"][0]) / 2 for point in points]
        dots["error_y"] = {"type": "data", "array": halves, "color": RIDGE, "thickness": 2}
    return {"data": [band, line, dots], "layout": _layout(*said, height=440)}


def _layout(x: str, y: str, *, height: int) -> Figure:
    return {
        "height": height,
        "margin": {"l": 80, "r": 30, "t": 40, "b": 60},
        "xaxis": {"title": {"text": x}, "automargin": True, "zeroline": False},
        "yaxis": {"title": {"text": y}, "automargin": True, "zeroline": False},
        "legend": {"orientation": "h", "y": 1.12},
        "hovermode": "closest",
    }
