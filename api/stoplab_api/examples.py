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
}
EXTEND: dict[str, Any] = {
    "seeds": {"seeds": [5, 6, 7]},
    "points": {"space": {"positions.noise_std": {"grid": [0.75]}}, "limits": {"trials": 200}},
}
NEW_TOKEN: dict[str, Any] = {
    "submitter": {"name": "laptop", "owner": "ana", "role": "submitter", "expires_in_days": 90}
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
    "delta": 0.012,
    "ci95": [0.004, 0.02],
    "min_effect": 0.005,
    "verdict": "better",
    "n_blocks": 3,
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
}
FRESH_TOKEN: dict[str, Any] = {**TOKEN, "secret": "stl_shown-this-once"}
TOKENS: dict[str, Any] = {"items": [TOKEN]}
CLUSTER: dict[str, Any] = {
    "capacity": {"cpus": 8.0, "gpus": 1.0},
    "reserved": {"cpus": 2.0, "gpus": 0.0},
    "jobs": {"QUEUED": 1, "RUNNING": 2},
    "runner": {"kind": "RayJobsRunner", "alive": True},
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
METRICS = """\
# HELP stoplab_queue_length Queued jobs.
# TYPE stoplab_queue_length gauge
stoplab_queue_length 2.0
"""
