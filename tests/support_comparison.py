"""What every comparison's result holds."""

from __future__ import annotations

KEYS = {
    "metric", "arms", "reference", "delta", "ci95", "min_effect", "verdict", "n_blocks", "blocks",
    "p_t", "p_sign_flip", "p_wilcoxon", "d_z", "prob_superior", "ci95_bca", "ci95_unpaired",
    "tost_p", "more_seeds_for_80_power", "certificate", "baseline",
    "alpha", "ci_alpha", "p_holm", "complete", "context", "sentence", "comparisons", "secondary",
    "per_image", "sequential", "warnings",
}  # fmt: skip
