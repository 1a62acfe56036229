"""A comparison's plots as Plotly figures: plain data, drawn by the page that holds them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stoplab_sweeps.curves import Curve
from stoplab_sweeps.words import PALETTE, signed

Figure = dict[str, Any]
GREY = "#8a8a8a"
BAND = 0.2  # opacity of what lies around a line
ASIDE = 0.22  # of the blocks above their arm's interval


def comparison_plots(
    judged: Mapping[str, Any], curves: Mapping[str, Mapping[str, Curve]]
) -> dict[str, Figure]:
    """Title to figure, in the order of the page."""
    found = {
        "Difference with its interval": interval_plot(judged),
        "Each seed": slope_plot(judged),
    }
    for metric, arms in curves.items():
        found[f"{metric} while training"] = curve_plot(metric, arms, list(judged["arms"]))
    return found


def interval_plot(judged: Mapping[str, Any]) -> Figure:
    """Each arm's difference and 95 % interval, its blocks as dots, and what would not matter."""
    colors = _colors(judged)
    data: list[Figure] = []
    for row, (arm, one) in enumerate(judged["comparisons"].items()):
        deltas = [(b["seed"], b["deltas"][arm]) for b in judged["blocks"]]
        known = [(seed, delta) for seed, delta in deltas if delta is not None]
        data.append({
            "type": "scatter", "mode": "markers", "name": f"{arm}: one seed", "showlegend": False,
            "x": [delta for _, delta in known], "y": [row + ASIDE] * len(known),
            "text": [f"seed {seed}: {signed(delta)}" for seed, delta in known],
            "hoverinfo": "text",
            "marker": {"color": colors[arm], "opacity": 0.8, "size": 9, "symbol": "line-ns-open",
                       "line": {"width": 2}},
        })  # fmt: skip
        if one["delta"] is not None:
            data.append(_interval_trace(arm, one, row, colors[arm]))
    smallest = judged["min_effect"]
    shapes = [_line(0.0)]
    if smallest > 0:
        shapes.append(_stripe(-smallest, smallest))
    difference = f"difference in {judged['metric']} (arm − {judged['reference']})"
    layout = _layout(difference, "", shapes=shapes, height=180 + 70 * len(judged["comparisons"]))
    others = list(judged["comparisons"])
    layout["yaxis"] |= {"tickvals": list(range(len(others))), "ticktext": others,
                        "range": [-0.6, len(others) - 0.4], "showgrid": False}  # fmt: skip
    return {"data": data, "layout": layout}


def slope_plot(judged: Mapping[str, Any]) -> Figure:
    """A line a seed from arm to arm, and the means on top."""
    arms, colors = list(judged["arms"]), _colors(judged)
    data: list[Figure] = []
    for block in judged["blocks"]:
        values = [block["values"][arm] for arm in arms]
        data.append({
            "type": "scatter", "mode": "lines+markers", "name": f"seed {block['seed']}",
            "x": arms, "y": values, "showlegend": False, "connectgaps": False,
            "line": {"color": GREY, "width": 1.5}, "opacity": 0.7,
            "marker": {"color": [colors[arm] for arm in arms], "size": 9},
        })  # fmt: skip
    means = [judged["arms"][arm]["mean"] for arm in arms]
    data.append({
        "type": "scatter", "mode": "lines+markers", "name": "mean", "x": arms, "y": means,
        "line": {"color": GREY, "width": 4, "dash": "dot"},
        "marker": {"color": [colors[arm] for arm in arms], "size": 14, "symbol": "diamond"},
    })  # fmt: skip
    layout = _layout("", judged["metric"], height=420)
    layout["xaxis"] |= {"type": "category", "range": [-0.4, len(arms) - 0.6]}
    return {"data": data, "layout": layout}


def curve_plot(metric: str, curves: Mapping[str, Curve], arms: list[str]) -> Figure:
    """Mean of the seeds with a band of one standard deviation, an arm a colour."""
    data: list[Figure] = []
    for arm, curve in curves.items():
        color = PALETTE[arms.index(arm) % len(PALETTE)]
        data.append({
            "type": "scatter", "mode": "lines", "hoverinfo": "skip", "showlegend": False,
            "x": [*curve["step"], *reversed(curve["step"])],
            "y": [*curve["high"], *reversed(curve["low"])],
            "fill": "toself", "fillcolor": color, "opacity": BAND, "line": {"width": 0},
            "legendgroup": arm,
        })  # fmt: skip
        data.append({
            "type": "scatter", "mode": "lines", "name": arm, "legendgroup": arm,
            "x": curve["step"], "y": curve["mean"], "line": {"color": color, "width": 2.5},
        })  # fmt: skip
    layout = _layout("optimizer step", f"{metric} (mean ± 1 sd of seeds)", height=400)
    return {"data": data, "layout": layout}


def _interval_trace(arm: str, one: Mapping[str, Any], row: int, color: str) -> Figure:
    delta, ends = one["delta"], one["ci95"]
    trace: Figure = {
        "type": "scatter", "mode": "markers", "name": arm, "x": [delta], "y": [row],
        "showlegend": False, "marker": {"color": color, "size": 15, "symbol": "diamond"},
        "hovertext": f"{arm}: {signed(delta)}", "hoverinfo": "text",
    }  # fmt: skip
    if ends is not None:
        trace["error_x"] = {
            "type": "data", "symmetric": False, "array": [ends[1] - delta],
            "arrayminus": [delta - ends[0]], "color": color, "thickness": 4, "width": 10,
        }  # fmt: skip
        trace["hovertext"] += f", 95 % interval {signed(ends[0])} to {signed(ends[1])}"
    return trace


def _colors(judged: Mapping[str, Any]) -> dict[str, str]:
    return {arm: PALETTE[i % len(PALETTE)] for i, arm in enumerate(judged["arms"])}


def _line(x: float) -> Figure:
    line = {"color": GREY, "width": 2}
    return {"type": "line", "yref": "paper", "x0": x, "x1": x, "y0": 0, "y1": 1, "line": line}


def _stripe(low: float, high: float) -> Figure:
    return {
        "type": "rect", "yref": "paper", "x0": low, "x1": high, "y0": 0, "y1": 1,
        "fillcolor": GREY, "opacity": BAND, "line": {"width": 0}, "layer": "below",
        "label": {"text": "too small to matter", "textposition": "top center",
                  "font": {"size": 11}},
    }  # fmt: skip


def _layout(x: str, y: str, *, height: int, shapes: list[Figure] | None = None) -> Figure:
    return {
        "height": height,
        "margin": {"l": 90, "r": 30, "t": 30, "b": 60},
        "xaxis": {"title": {"text": x}, "automargin": True, "zeroline": False},
        "yaxis": {"title": {"text": y}, "automargin": True, "zeroline": False},
        "shapes": shapes or [],
        "legend": {"orientation": "h", "y": 1.12},
        "hovermode": "closest",
    }
