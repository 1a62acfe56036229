"""The page that shows an album, and the numbers beside it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

from stoplab_trainers.diagnostics.album import Album

ROWS: tuple[tuple[str, str, str, str], ...] = (
    ("noise", "stop/a_norm", ".3f", "size of the projection A (Frobenius norm)"),
    ("noise", "stop/mask_token_norm", ".3f", "size of the mask token"),
    ("noise", "stop/bias_norm", ".3f", "size of A's bias"),
    ("noise", "stop/norm_gain", ".3f", "gain of the encoder's final norm (rms)"),
    ("noise", "stop/noise_to_signal", ".3f", "noise over signal A s, on these images (rms)"),
    ("noise", "stop/displacement_patches", ".2f", "length of the noise, in steps between patches"),
    ("noise", "stop/landing_patches", ".3f", "how far a noised position lands (patches)"),
    ("noise", "stop/landing_stays", ".1%", "noised positions that stay nearest to their own patch"),
    ("noise", "noise_std_for_one_patch", ".3f", "noise_std that is one patch long, with this A"),
    ("noise", "stop/sigma_rank", ".1f", "effective rank of Σ"),
    ("noise", "stop/sigma_top_share", ".1%", "share of Σ's strongest direction"),
    ("predictions", "error", ".3f", "error of the mean prediction (rms)"),
    ("predictions", "error_of_zero", ".3f", "the same of predicting 0"),
    ("predictions", "spread", ".3f", "spread of predictions over draws of the noise (rms)"),
    ("coverage", "mask/context_coverage", ".1%", "images in which the rarest patch is context"),
    ("coverage", "mask/target_coverage", ".1%", "images in which the rarest patch is a target"),
    ("coverage", "mask/shortest_context", ".0f", "shortest context (patches)"),
    ("features", "collapse/rankme", ".1f", "RankMe of pooled target features"),
    ("features", "collapse/pooled_std", ".3f", "spread of pooled target features over images"),
    ("features", "collapse/target_drift", ".2f", "their distance from the untrained encoder's"),
    ("features", "position/location_r2", ".3f", "R² of row and column, read from patch features"),
)  # fmt: skip
"""Part and name of a number, how it is written, what it means."""
NEEDS_NOISE = ("stop/noise_to_signal", "stop/displacement_patches")

STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem;"
    "color:#222}img{max-width:100%;border:1px solid #ddd}table{border-collapse:collapse}"
    "td,th{padding:.2rem .8rem .2rem 0;text-align:left}td.n{text-align:right;"
    "font-variant-numeric:tabular-nums}.warn{color:#a00}"
)


def rows(numbers: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Name, value and meaning of each number that applies."""
    noisy = "spectrum" in numbers
    for part, name, how, meaning in ROWS:
        value = numbers.get(part, {}).get(name)
        if value is not None and (noisy or name not in NEEDS_NOISE):
            yield name, format(value, how), meaning


def table(numbers: Mapping[str, Any]) -> str:
    """The same for a terminal."""
    found = list(rows(numbers))
    names, values = (max(len(row[i]) for row in found) for i in (0, 1))
    return "\n".join(f"{name:<{names}}  {value:>{values}}  {text}" for name, value, text in found)


def page(title: str, lines: list[str], made: Album) -> str:
    """An HTML page beside the pictures' files; ``lines`` say what was looked at."""
    body = [f"<h1>{escape(title)}</h1>", *(f"<p>{escape(line)}</p>" for line in lines)]
    faults = made.numbers.get("coverage", {}).get("faults", [])
    body += [f'<p class="warn">Masks: {escape(fault)}.</p>' for fault in faults]
    for one in made.pictures:
        body += [
            f"<h2>{escape(one.title)}</h2>",
            f"<p>{escape(one.sentence)}</p>",
            f'<img src="{escape(one.file)}" alt="{escape(one.title)}">',
        ]
    if made.absent:
        absent = "".join(f"<li>{escape(text)}</li>" for text in made.absent)
        body.append(f"<h2>What does not apply here</h2><ul>{absent}</ul>")
    cells = "".join(
        f'<tr><td>{escape(name)}</td><td class="n">{value}</td><td>{escape(text)}</td></tr>'
        for name, value, text in rows(made.numbers)
    )
    body.append(f"<h2>Numbers</h2><table>{cells}</table>")
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>"
        f"<body>{''.join(body)}</body></html>\n"
    )
