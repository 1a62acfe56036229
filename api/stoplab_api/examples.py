"""Examples of every body, for the OpenAPI page; tests hold them to the models and the specs."""

from __future__ import annotations

from typing import Any

RUN: dict[str, Any] = {
    "kind": "pretrain",
    "name": "digits-stop",
    "positions": {"kind": "stochastic", "noise_std": 0.25},
    "model": {
        "encoder": "custom",
        "width": 48,
        "depth": 3,
        "heads": 3,
        "patch_size": 2,
        "predictor": {"width": 24, "depth": 2},
        "init": "small",
    },
    "masking": {"kind": "multiblock", "min_keep": 4},
    "data": {"train": "digits", "image_size": 16},
    "optim": {"epochs": 20, "batch_size": 64, "lr": 1e-3},
}
SWEEP: dict[str, Any] = {
    "kind": "sweep",
    "name": "noise-scale",
    "base": RUN,
    "space": {"positions.noise_std": {"grid": [0.1, 0.25, 0.5]}},
}
COMPARE: dict[str, Any] = {
    "kind": "compare",
    "name": "stop-vs-deterministic",
    "base": RUN,
    "arms": {"deterministic": {"positions.kind": "deterministic"}, "stochastic": {}},
    "seeds": [0, 1, 2],
}
EVALUATE: dict[str, Any] = {
    "kind": "evaluate",
    "name": "probe",
    "checkpoint": {"job": "j_01kb3w8f0e3g9q6w5t2s1r4y7z"},
    "data": {"train": "digits/train", "test": "digits/test", "image_size": 16},
}
SUBMITS: dict[str, Any] = {
    "pretrain": {"spec": RUN, "labels": {"team": "ssl"}, "priority": 0},
    "sweep": {"spec": SWEEP},
    "compare": {"spec": COMPARE},
    "evaluate": {"spec": EVALUATE},
}
PATCH: dict[str, Any] = {
    "labels": {"labels": {"team": "vision", "old": None}},
    "priority": {"priority": 5},
    "concurrency": {"limits": {"max_concurrent": 2}},
    "hours": {"limits": {"wall_hours": 12, "gpu_hours": None}},
}
EXTEND: dict[str, Any] = {
    "seeds": {"seeds": [5, 6, 7]},
    "points": {"space": {"positions.noise_std": {"grid": [0.75]}}, "limits": {"trials": 200}},
}
RETRY: dict[str, Any] = {
    "as it was": {},
    "under a higher limit": {"limits": {"wall_hours": 12}},
}
NEW_TOKEN: dict[str, Any] = {
    "submitter": {"name": "laptop", "owner": "ana", "role": "submitter", "expires_in_days": 90},
    "scoped": {"name": "dashboard", "owner": "ana", "role": "admin", "scopes": ["jobs:read"]},
}

JOB: dict[str, Any] = {
    "id": "j_01kb3w8f0e3g9q6w5t2s1r4y7z",
    "kind": "pretrain",
    "name": "digits-stop",
    "project": "default",
    "owner": "ana",
    "labels": {"team": "ssl"},
    "priority": 0,
    "spec": RUN,
    "spec_digest": "5f2b4c0f6a1d",
    "run_digest": None,
    "retry_of": None,
    "extends": None,
    "limits": {},
    "version": 3,
    "created_at": "2026-11-23T09:00:00.000Z",
    "started_at": "2026-11-23T09:00:04.000Z",
    "finished_at": None,
    "status": {
        "state": "RUNNING",
        "reason_code": None,
        "message": None,
        "attempt": 1,
        "progress": {
            "step": 120,
            "steps": 380,
            "epoch": 6,
            "eta_s": 40.1,
            "samples_per_s": 812.0,
        },
        "queue": None,
        "allowed_actions": ["cancel", "pause"],
        "history": [
            {"state": "QUEUED", "at": "2026-11-23T09:00:00.000Z", "reason_code": None},
            {"state": "STARTING", "at": "2026-11-23T09:00:01.000Z", "reason_code": None},
            {"state": "RUNNING", "at": "2026-11-23T09:00:04.000Z", "reason_code": None},
        ],
    },
    "links": {
        "self": "/v1/jobs/j_01kb3w8f0e3g9q6w5t2s1r4y7z",
        "mlflow": "http://127.0.0.1:5000/#/experiments/1/runs/0a1b2c",
        "logs": "/v1/jobs/j_01kb3w8f0e3g9q6w5t2s1r4y7z/logs",
    },
}
JOBS: dict[str, Any] = {"items": [JOB], "next_cursor": None}
DRY_RUN: dict[str, Any] = {
    "dry_run": True,
    "kind": "pretrain",
    "name": "digits-stop",
    "labels": {"team": "ssl"},
    "priority": 0,
    "spec": RUN,
    "spec_digest": "5f2b4c0f6a1d",
    "demand": {"cpus": 1.0, "gpus": 0.0},
    "links": {"estimate": "/v1/estimates"},
}

ESTIMATE_ASKS: dict[str, Any] = {
    "pretrain": {"spec": RUN},
    "compare": {"spec": COMPARE},
    "remote data": {"spec": RUN, "images": 1257},
}
ESTIMATE: dict[str, Any] = {
    "kind": "pretrain",
    "name": "digits-stop",
    "spec_digest": "5f2b4c0f6a1d",
    "runs": 1,
    "concurrent": 1,
    "images": 1257,
    "parameters": {"encoder": 85488, "predictor": 16968, "trained": 102456},
    "flops_per_image": {
        "target": 1.2e7, "context": 4.1e6, "predictor": 4.2e6, "train": 3.6e7,
    },
    "memory": {
        "weights": 429312, "gradients": 409824, "optimizer": 819648, "target": 354240,
        "activations": 41000000, "checkpoint": 1603200, "runtime": 629145600,
        "total": {"low": 665600000.0, "value": 673800000.0, "high": 698400000.0},
    },
    "samples_per_s": {"low": 620.0, "value": 810.0, "high": 1050.0},
    "run_hours": {"low": 0.008, "value": 0.011, "high": 0.015},
    "gpu_hours": {"low": 0.0, "value": 0.0, "high": 0.0},
    "cpu_hours": {"low": 0.008, "value": 0.011, "high": 0.015},
    "wall_hours": {"low": 0.008, "value": 0.011, "high": 0.015},
    "confidence": "measured",
    "rests_on": {
        "sentence": "2 finished run(s) of this shape did 810 images/s in this lab.",
        "facts": [
            "1257 images an epoch: the embedded set 'digits'",
            "8 s beside the steps, as in runs with the same evaluations, and 15 s to start",
            "measured in j_01kb3w8f0e3g9q6w5t2s1r4y7z/run",
        ],
    },
}  # fmt: skip
HINDSIGHT: dict[str, Any] = {
    "estimate": ESTIMATE,
    "measured": {"gpu_hours": 0.0, "cpu_hours": 0.0121, "wall_hours": 0.0121},
    "error": {"gpu_hours": None, "cpu_hours": 0.1, "wall_hours": 0.1},
    "within": {"gpu_hours": True, "cpu_hours": True, "wall_hours": True},
    "reason": None,
}
METRICS: dict[str, Any] = {
    "run": "run",
    "run_id": "0a1b2c",
    "source": "mlflow",
    "items": [{"name": "train/loss", "value": 0.3987}, {"name": "val/knn_top1", "value": 0.71}],
}
SERIES: dict[str, Any] = {
    "run": "run",
    "run_id": "0a1b2c",
    "source": "mlflow",
    "series": [
        {
            "name": "train/loss",
            "n_total": 2,
            "downsampled": False,
            "points": [
                {"step": 10, "value": 0.4312, "at": "2026-11-23T09:00:05.000Z"},
                {"step": 20, "value": 0.3987, "at": "2026-11-23T09:00:06.000Z"},
            ],
        }
    ],
}
ARTIFACTS: dict[str, Any] = {
    "items": [
        {
            "path": "runs/run/artifacts/masks.png",
            "bytes": 48211,
            "modified": "2026-11-23T09:00:04.000Z",
        },
        {"path": "spec.yaml", "bytes": 1893, "modified": "2026-11-23T09:00:01.000Z"},
    ]
}

LOG_TEXT = "step 10 of 380: loss 0.4312\nstep 20 of 380: loss 0.3987\n"
LOG_STREAM = (
    "event: log\ndata: step 10 of 380: loss 0.4312\ndata: \nid: 28\n\n"
    'event: end\ndata: {"state": "SUCCEEDED"}\nid: 28\n\n'
)
EVENT: dict[str, Any] = {
    "seq": 7,
    "at": "2026-11-23T09:00:00.000Z",
    "actor": "ana",
    "verb": "submit",
    "from_state": None,
    "to_state": "QUEUED",
    "reason_code": None,
    "message": None,
}
EVENTS: dict[str, Any] = {"items": [EVENT]}
PROJECT_EVENTS: dict[str, Any] = {
    "items": [
        {**EVENT, "job_id": "j_01kb3w8f0e3g9q6w5t2s1r4y7z"},
        {
            **EVENT, "seq": 8, "actor": "root", "verb": "token.create", "to_state": None,
            "message": "t_01kb3w8f0e3g9q6w5t2s1r4y7z laptop: submitter for ana", "job_id": None,
        },
    ],
    "next_after": None,
}  # fmt: skip
EVENT_STREAM = (
    'event: event\ndata: {"seq": 7, "verb": "submit"}\nid: 7\n\n'
    'event: end\ndata: {"state": "SUCCEEDED"}\nid: 7\n\n'
)
TRIALS: dict[str, Any] = {
    "items": [
        {
            "id": "stochastic-s0",
            "index": 1,
            "arm": "stochastic",
            "point": {},
            "seed": 0,
            "state": "SUCCEEDED",
            "metrics": {"test/linear_top1": 0.93},
            "run_id": "0a1b2c",
            "run_digest": "77aa01",
            "error": None,
            "started_at": "2026-11-23T09:00:04.000Z",
            "finished_at": "2026-11-23T09:01:00.000Z",
        }
    ],
    "counts": {"SUCCEEDED": 1, "PENDING": 5},
    "best": None,
}
COMPARISON: dict[str, Any] = {
    "metric": "test/linear_top1",
    "arms": {
        "deterministic": {"mean": 0.921, "std": 0.004, "n": 3},
        "stochastic": {"mean": 0.933, "std": 0.003, "n": 3},
    },
    "reference": "deterministic",
    "other": "stochastic",
    "delta": 0.012,
    "ci95": [0.0077, 0.0163],
    "min_effect": 0.005,
    "alpha": 0.05,
    "ci_alpha": [0.0077, 0.0163],
    "verdict": "better",
    "n_blocks": 3,
    "blocks": [
        {
            "seed": seed,
            "values": {"deterministic": a, "stochastic": b},
            "delta": delta,
            "deltas": {"stochastic": delta},
            "run_ids": {"deterministic": f"0a1b2{seed}", "stochastic": f"3c4d5{seed}"},
        }
        for seed, a, b, delta in [
            (0, 0.917, 0.930, 0.013),
            (1, 0.921, 0.934, 0.013),
            (2, 0.925, 0.935, 0.010),
        ]
    ],
    "p_t": 0.0069,
    "p_holm": 0.0069,
    "p_sign_flip": 0.25,
    "p_wilcoxon": 0.25,
    "d_z": 6.9282,
    "prob_superior": 1.0,
    "ci95_bca": None,
    "ci95_unpaired": [0.0038, 0.0202],
    "tost_p": 0.9901,
    "more_seeds_for_80_power": 0,
    "certificate": {
        "passed": True,
        "pairing": "paired",
        "streams": {"init": "equal", "samples": "equal", "crops": "equal", "masks": "equal"},
        "blocks_checked": 3,
        "reasons": [],
    },
    "baseline": "ijepa",
    "sentence": "stochastic is better than deterministic: test/linear_top1 +0.0120, 95 % interval "
    "+0.0077 to +0.0163, 3 blocks",
    "complete": True,
    "warnings": [],
}
SURFACE: dict[str, Any] = {
    "metric": "val/knn_top1",
    "mode": "max",
    "axes": {"noise_std": [0.0, 0.25, 0.5], "ratio": [0.5, 0.7]},
    "mean": [[0.91, 0.92, 0.91], [0.92, 0.94, 0.93]],
    "std": [[0.004, 0.005, 0.004], [0.004, 0.005, 0.004]],
    "points": [
        {"noise_std": 0.25, "ratio": 0.7, "mean": 0.94, "n": 2, "ci95": [0.93, 0.95]},
    ],
    "ridge": [{"ratio": 0.7, "noise_std": 0.28, "mean": 0.941}],
    "delta": {
        "mean": [[0.0, 0.01, 0.0], [0.0, 0.02, 0.01]],
        "std": [[0.0, 0.004, 0.006], [0.0, 0.004, 0.006]],
    },
    "beyond_doubt": [[False, True, False], [False, True, False]],
    "beyond_doubt_reason": None,
    "baseline": "ijepa",
    "next_points": [
        {
            "noise_std": 0.3,
            "ratio": 0.7,
            "mean": 0.941,
            "std": 0.005,
            "expected_improvement": 0.002,
            "hours": 1.5,
            "ei_per_hour": 0.0013,
            "gpu_hours": 1.5,
            "ei_per_gpu_hour": 0.0013,
        }
    ],
    "hours_unit": "GPU-hours",
    "importance": {"positions.noise_std": 0.7, "masking_ratio": 0.3},
    "reason": None,
}

ME: dict[str, Any] = {"owner": "ana", "project": "default", "role": "submitter"}
TOKEN: dict[str, Any] = {
    "id": "t_01kb3w8f0e3g9q6w5t2s1r4y7z",
    "name": "laptop",
    "owner": "ana",
    "project": "default",
    "role": "submitter",
    "created_at": "2026-11-23T09:00:00.000Z",
    "expires_at": None,
    "revoked_at": None,
    "scopes": None,
    "last_used_at": "2026-11-23T09:30:00.000Z",
}
FRESH_TOKEN: dict[str, Any] = {**TOKEN, "secret": "stl_shown-this-once"}
TOKENS: dict[str, Any] = {"items": [TOKEN]}
CLUSTER: dict[str, Any] = {
    "capacity": {"cpus": 8.0, "gpus": 1.0},
    "reserved": {"cpus": 2.0, "gpus": 0.0},
    "jobs": {"QUEUED": 1, "RUNNING": 2},
    "runner": {"kind": "RayJobsRunner", "alive": True},
    "project": {
        "name": "vision",
        "held": {"cpus": 2.0, "gpus": 0.0, "jobs": 2},
        "quota": {"cpus": None, "gpus": 1.0, "jobs": None},
    },
}
READY: dict[str, Any] = {
    "ready": True,
    "checks": {
        "database": {"ok": True, "message": None},
        "runner": {"ok": True, "message": None},
        "mlflow": {"ok": True, "message": None},
        "reconciler": {"ok": True, "message": None},
    },
}
PROMETHEUS = """\
# HELP stoplab_queue_length Queued jobs.
# TYPE stoplab_queue_length gauge
stoplab_queue_length 2.0
"""
