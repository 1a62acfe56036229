"""Reports as single HTML files: no other file, no other host, and scripts of ours alone."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from stoplab_sweeps import words
from stoplab_sweeps.curves import Curve
from stoplab_sweeps.plots import comparison_plots
from stoplab_sweeps.report import comparison_rows
from stoplab_sweeps.surface_plots import importance_plot, surface_plots

DIGITS = 5


def comparison_html(
    name: str, judged: Mapping[str, Any], curves: Mapping[str, Mapping[str, Curve]]
) -> str:
    """The comparison for people: the verdict, plots, every number with its meaning."""
    return _page(
        "comparison.html.j2",
        name=name,
        judged={"warnings": [], **judged},
        plots=_drawn(comparison_plots(judged, curves)),
        blocks=comparison_rows(judged),
        looks=words.looks(judged),
        facts=[(arm, words.facts(one, judged, arm)) for arm, one in judged["comparisons"].items()],
        secondary=words.secondary_rows(judged),
        secondary_head=words.SECONDARY,
        images=words.image_rows(judged),
        images_head=words.IMAGES,
        image_note=words.image_note(judged),
    )


def surface_html(name: str, found: Mapping[str, Any]) -> str:
    """The response surface for people; it must be there."""
    assert found["mean"] is not None, "the caller has looked"
    plots = surface_plots(found)
    if (bars := importance_plot(found)) is not None:
        plots["What the axes decide"] = bars
    return _page(
        "surface.html.j2",
        name=name,
        found=found,
        sentence=surface_sentence(found),
        against=_against(found),
        plots=_drawn(plots),
        next=_next_rows(found),
        points=[
            (f"{p['noise_std']:g}", f"{p['ratio']:.3f}", words.number(p["mean"]),
             words.ends_of(p), str(p["n"]))
            for p in found["points"]
        ],
    )  # fmt: skip


def surface_sentence(found: Mapping[str, Any]) -> str:
    """What the surface says, in short."""
    better = max if found["mode"] == "max" else min
    best = better(found["points"], key=lambda point: point["mean"])
    text = (
        f"Best measured: {found['metric']} {best['mean']:.4f} at noise scale "
        f"{best['noise_std']:g} and masked fraction {best['ratio']:.3f}."
    )
    against = _against(found)
    if found["beyond_doubt"] is None:
        why = found["beyond_doubt_reason"] or "it holds no runs without noise"
        return f"{text} Whether noise improves on {against} cannot be told: {why}."
    cells = [sure for row in found["beyond_doubt"] for sure in row]
    if not any(cells):
        return f"{text} Nowhere is an improvement over {against} beyond doubt."
    part = f"{100 * sum(cells) / len(cells):.0f} %"
    return (
        f"{text} An improvement over {against} is beyond doubt on {part} of it, each place judged "
        "alone (95 %)."
    )


def _against(found: Mapping[str, Any]) -> str:
    return words.BASELINES.get(found.get("baseline"), "positions without noise")


def _next_rows(found: Mapping[str, Any]) -> list[tuple[str, ...]]:
    return [
        (str(rank + 1), f"{p['noise_std']:.3g}", f"{p['ratio']:.3f}",
         f"{p['mean']:.4f} ± {p['std']:.4f}", f"{p['expected_improvement']:.2g}",
         *("-" if p[key] is None else f"{p[key]:.2g}" for key in ("hours", "ei_per_hour")))
        for rank, p in enumerate(found["next_points"])
    ]  # fmt: skip


def _drawn(plots: Mapping[str, Any]) -> list[tuple[str, Markup]]:
    """Figures as JSON that no HTML parser ends early."""
    return [
        (title, Markup(json.dumps(_short(figure)).replace("<", "\\u003c")))
        for title, figure in plots.items()
    ]


def _short(value: Any) -> Any:
    """Numbers without digits that nobody sees."""
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    if isinstance(value, Mapping):
        return {key: _short(inner) for key, inner in value.items()}
    return [_short(inner) for inner in value] if isinstance(value, list | tuple) else value


def _page(template: str, **content: Any) -> str:
    """Fill a template; the page allows the two scripts that it brings, and no others."""
    loader = PackageLoader("stoplab_sweeps")
    pages = Environment(
        loader=loader, autoescape=select_autoescape(["html.j2"]), undefined=StrictUndefined
    )
    plotly, js, css = get_plotlyjs(), *(_source(loader, pages, f"page.{x}") for x in ("js", "css"))
    parts = {"plotly": Markup(plotly), "js": Markup(js), "css": Markup(css)}
    return pages.get_template(template).render(**parts, policy=_policy([plotly, js]), **content)


def _policy(scripts: Sequence[str]) -> str:
    """What the page may load (Content Security Policy 3): these scripts, its own styles."""
    digests = (hashlib.sha256(script.encode()).digest() for script in scripts)
    hashes = " ".join(f"'sha256-{base64.b64encode(one).decode()}'" for one in digests)
    return (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; "
        "img-src data: blob:; base-uri 'none'; form-action 'none'"
    )


def _source(loader: PackageLoader, pages: Environment, name: str) -> str:
    text: str = loader.get_source(pages, name)[0]
    return text
