r"""A comparison as a LaTeX table; needs ``\usepackage{booktabs}``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

SPECIAL = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "<": r"\textless{}", ">": r"\textgreater{}",
}  # fmt: skip


def comparison_tex(name: str, judged: Mapping[str, Any]) -> str:
    """A table: a row an arm with n, mean and spread, difference, interval and p (Holm)."""
    here = (judged.get("sequential") or {}).get("alpha_here")
    level = f"{100 * (1 - (here or judged['alpha'])):.4g}"
    rows = [_row(arm, row, judged["comparisons"].get(arm)) for arm, row in judged["arms"].items()]
    caption = (
        f"{escaped(name)}: {escaped(judged['metric'])}, {judged['n_blocks']} paired blocks. "
        f"{escaped(judged['sentence'])}. Mean and standard deviation over seeds; "
        f"$\\Delta$ against {escaped(judged['reference'])}; intervals and $p$ from the paired "
        f"$t$-test ($p$ adjusted by Holm), verdict by the {level}\\,\\% interval and the smallest "
        f"relevant difference {judged['min_effect']:g}."
    )
    return "\n".join([
        "% Needs \\usepackage{booktabs}.",
        r"\begin{table}",
        r"  \centering",
        f"  \\caption{{{caption}}}",
        r"  \begin{tabular}{lrccccl}",
        r"    \toprule",
        r"    arm & $n$ & mean $\pm$ sd & $\Delta$ & 95\,\% CI & $p$ & verdict \\",
        r"    \midrule",
        *(f"    {row} \\\\" for row in rows),
        r"    \bottomrule",
        r"  \end{tabular}",
        r"\end{table}",
        "",
    ])  # fmt: skip


def escaped(text: str) -> str:
    """Text that LaTeX prints as it is."""
    return "".join(SPECIAL.get(letter, letter) for letter in text)


def _row(arm: str, summary: Mapping[str, Any], one: Mapping[str, Any] | None) -> str:
    spread = "" if summary["std"] is None else f" \\pm {summary['std']:.4f}"
    mean = "--" if summary["mean"] is None else f"${summary['mean']:.4f}{spread}$"
    cells = [escaped(arm), str(summary["n"]), mean]
    if one is None:
        return " & ".join([*cells, "--", "--", "--", "reference"])
    delta = "--" if one["delta"] is None else f"${one['delta']:+.4f}$"
    ends = one["ci95"]
    interval = "--" if ends is None else f"$[{ends[0]:+.4f}, {ends[1]:+.4f}]$"
    p = one.get("p_holm")
    chance = "--" if p is None else "$< 0.0001$" if p < 1e-4 else f"${p:.4f}$"
    return " & ".join([*cells, delta, interval, chance, escaped(one["verdict"])])
