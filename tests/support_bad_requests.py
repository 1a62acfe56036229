"""Requests as nobody should send them: specs and bodies bent in every way, from a seed."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass, field
from random import Random
from typing import Any

from stoplab_api import examples
from support_api import COMPARE, SPEC

SWEEP: dict[str, Any] = {
    "kind": "sweep", "name": "grid", "base": SPEC,
    "space": {"positions.noise_std": {"grid": [0.1, 0.2]}, "optim.lr": {"grid": [0.001, 0.002]}},
    "replicates": 2,
}  # fmt: skip
EVALUATE: dict[str, Any] = {
    "kind": "evaluate", "name": "probe", "checkpoint": {"path": "/data/run"},
    "data": {"train": "digits/train", "test": "digits/test", "image_size": 16},
    "protocols": [{"kind": "knn", "k": 5}, {"kind": "low_shot", "fraction": 0.1}],
}  # fmt: skip
SPECS = (SPEC, SWEEP, COMPARE, EVALUATE)
RAW = (
    "1e400",
    "-1e400",
    "-0.0",
    "1e-400",
    "NaN",
    "-Infinity",
    "9" * 5000,
    '"\\ud800"',
    '"\\u0000"',
)
"""JSON that `json.dumps` does not write."""
TRAVERSALS = ("../../etc/passwd", "/etc/shadow", "..", "a/../../b", "~root/x", "~nobody-here/x",
              "file:///etc/passwd", "pipe:cat /etc/passwd", "s3://user:secret@host/x", "C:\\x",
              "a\0b", "\r\nX: y", "%2e%2e%2f", "{0..999999999}", "/*/*/*/*", "/**/*.tar"
             )  # fmt: skip
NAMES = ("", "kind", "spec", "__class__", "a.b", "~1", "/", "\0", "é" * 300, "x" * 70_000)


@dataclass(frozen=True)
class Bad:
    """One request."""

    method: str
    path: str
    content: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


def requests(seed: int, count: int, job_ids: list[str]) -> Iterator[Bad]:
    """So many requests, always the same ones; ``job_ids`` are jobs that exist."""
    for number in range(count):
        random = Random(f"{seed}-{number}")
        yield random.choices(WAYS, WEIGHTS)[0](random, random.choice(job_ids))


def _with_spec(random: Random, job_id: str) -> Bad:
    body: dict[str, Any] = {"spec": _bent(random, random.choice(SPECS))}
    if random.random() < 0.2:
        body[random.choice(("labels", "priority", "images", "x"))] = _junk(random)
    path = random.choice(("/v1/jobs", "/v1/jobs?dry_run=true", "/v1/estimates"))
    return Bad("POST", path, _json(body), {"Content-Type": "application/json"})


def _with_body(random: Random, job_id: str) -> Bad:
    good, method, path = random.choice(_bodies(job_id))
    headers = {"Content-Type": "application/json", "If-Match": "*"}
    return Bad(method, path, _json(_bent(random, good)), headers)


def _raw(random: Random, job_id: str) -> Bad:
    good, method, path = random.choice(_bodies(job_id))
    content = random.choice(_contents(random, _json(good)))
    headers = {"If-Match": "*", **random.choice(_TYPES)}
    return Bad(method, path, content, headers)


def _with_headers(random: Random, job_id: str) -> Bad:
    good, method, path = random.choice([*_bodies(job_id), *_reads(job_id)])
    values = ("", "null", "-1", "1e9", "*", '"0"', 'W/"x"', "9" * 300, "\x7f", "é", "a, b",
              "bytes=-", "bytes=9-1", "bytes=0-1,2-3", "bytes=" + "9" * 40, "x" * 20_000
             )  # fmt: skip
    names = ("Idempotency-Key", "If-Match", "If-None-Match", "Last-Event-ID", "Range", "If-Range",
             "Accept", "Content-Type", "X-Request-ID", "Authorization",
             "Accept-Encoding")  # fmt: skip
    headers = {name: random.choice(values) for name in random.sample(names, random.randint(1, 4))}
    return Bad(method, path, b"" if good is None else _json(good), headers)


def _with_query(random: Random, job_id: str) -> Bad:
    good, method, path = random.choice([*_bodies(job_id), *_reads(job_id)])
    names = ("state", "kind", "label", "q", "limit", "cursor", "dry_run", "rank", "tail", "name",
             "run", "points", "sort", "seed", "min", "max", "point", "format", "after", "", "%00",
             "spec", "arm", "actor", "verb")  # fmt: skip
    values = ("", "-1", "1e400", "NaN", "9" * 400, "%ff", "%00", "..%2f..", "a:b", ":", "true",
              "[]", "%ed%a0%80", "val/x:1e99", "x" * 3000, "j_" + "0" * 26)  # fmt: skip
    pairs = (f"{random.choice(names)}={random.choice(values)}" for _ in range(random.randint(1, 5)))
    return Bad(method, f"{path}?{'&'.join(pairs)}", b"" if good is None else _json(good))


def _with_path(random: Random, job_id: str) -> Bad:
    good, method, path = random.choice([*_bodies(job_id), *_reads(job_id)])
    names = ("..", "%2e%2e", "%00", "%ff", "x" * 3000, "j_" + "9" * 26, "'; DROP TABLE jobs; --",
             "..%2f..%2fetc%2fpasswd", "%ed%a0%80", "*", "j_%0a")  # fmt: skip
    ending = random.choice(("", "/artifacts/", "/artifacts/../spec.yaml", "/logs/x", "//"))
    bent = path.replace(job_id, random.choice(names).replace(" ", "%20")) + ending
    return Bad(method, bent, b"" if good is None else _json(good))


Way = Callable[[Random, str], Bad]
WAYS: tuple[Way, ...] = (_with_spec, _with_body, _raw, _with_headers, _with_query, _with_path)
WEIGHTS = (60, 12, 8, 8, 8, 4)
_TYPES: tuple[dict[str, str], ...] = (
    {}, {"Content-Type": "application/json"}, {"Content-Type": "text/plain"},
    {"Content-Type": "application/json; charset=utf-16"}, {"Content-Type": "multipart/form-data"},
    {"Content-Type": "application/x-www-form-urlencoded"}, {"Content-Encoding": "gzip"},
    {"Content-Type": "application/vnd.x+json"}, {"Content-Type": ";"},
)  # fmt: skip


def _bodies(job_id: str) -> list[tuple[Any, str, str]]:
    """Every writing route, with a body that it takes."""
    job = f"/v1/jobs/{job_id}"
    return [
        ({"spec": SPEC}, "POST", "/v1/jobs?dry_run=true"),
        ({"spec": SPEC}, "POST", "/v1/estimates"),
        *((body, "PATCH", job) for body in examples.PATCH.values()),
        *((body, "POST", f"{job}/extend") for body in examples.EXTEND.values()),
        *((body, "POST", f"{job}/retry") for body in examples.RETRY.values()),
        *((body, "POST", "/v1/tokens") for body in examples.NEW_TOKEN.values()),
        *((None, "POST", f"{job}/{word}") for word in ("cancel", "pause", "resume")),
        (None, "POST", f"/v1/tokens/{job_id}/rotate"),
        (None, "DELETE", f"/v1/tokens/{job_id}"),
    ]


def _reads(job_id: str) -> list[tuple[None, str, str]]:
    job = f"/v1/jobs/{job_id}"
    parts = ("", "/logs", "/events", "/metrics", "/artifacts", "/artifacts/spec.yaml", "/trials",
             "/comparison", "/surface", "/estimate")  # fmt: skip
    paths = ("/v1/jobs", "/v1/tokens", "/v1/events", "/v1/cluster", "/v1/schema/sweep")
    return [(None, "GET", path) for path in (*paths, *(job + part for part in parts))]


def _bent(random: Random, good: Any) -> Any:
    """A copy with some values replaced, added, taken out or blown up."""
    bent = deepcopy(good)
    for _ in range(random.randint(1, 4)):
        node = random.choice(list(_containers(bent)) or [{}])
        if isinstance(node, list):
            node.insert(random.randint(0, len(node)), _junk(random))
            continue
        keys = list(node)
        match random.randrange(6):
            case 0 if keys:
                del node[random.choice(keys)]
            case 1:
                node[random.choice(NAMES + TRAVERSALS)] = _junk(random)
            case 2 if keys:
                node[random.choice(keys)] = deepcopy(random.choice(list(_values(good))))
            case _ if keys:
                node[random.choice(keys)] = _junk(random)
    return bent


def _junk(random: Random) -> Any:
    makers: tuple[Callable[[], Any], ...] = (
        lambda: random.choice((None, True, False, 0, 1, -1, "", [], {}, 0.5, -0.0, [[]], "nan")),
        lambda: random.choice((2**31, 2**63, 2**200, -(2**64), 10**400, 1e308, 5e-324, 1e-9)),
        lambda: f"@@{random.choice(RAW)}@@",
        lambda: random.choice(TRAVERSALS),
        lambda: "x" * random.choice((201, 5000, 100_000)),
        lambda: _nested(random, random.choice((5, 60, 70, 400))),
        lambda: [random.random()] * random.choice((2, 1001, 20_000)),
        lambda: {f"k{n}": n for n in range(random.choice((3, 101, 5000)))},
        lambda: list(range(random.choice((50, 3000)))),
        lambda: {"kind": random.choice(("random", "multiblock", "knn", "pretrain", "x"))},
        lambda: [random.uniform(-1, 2), random.uniform(-1, 20)],
        lambda: random.choice((16, 64, 1024, 4096, 16384, 65536)),
    )
    return random.choice(makers)()


def _nested(random: Random, depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value] if random.random() < 0.5 else {"a": value}
    return value


def _json(value: Any) -> bytes:
    text = json.dumps(value)
    for raw in RAW:
        text = text.replace(json.dumps(f"@@{raw}@@"), raw)
    return text.encode()


def _contents(random: Random, good: bytes) -> tuple[bytes, ...]:
    cut = random.randrange(len(good))
    return (
        b"", b" ", b"null", b"[]", b"0", b'""', b"\xff\xfe", b"\xef\xbb\xbf" + good, good[:cut],
        good[:cut] + b"\xff" + good[cut:], good[:cut] + b"\0" + good[cut:], good * 2,
        gzip.compress(good), good.decode().encode("utf-16"), b"[" * 100_000, b'{"a":' * 3000,
        good[:-1] + b"," + good[1:], b'{"spec":1,"spec":2}', b"9" * 100_000, b'"\\ud800"',
        good[:-1] + b", 1e400: 1}", b"--x\r\nContent-Disposition: form-data\r\n\r\n1\r\n--x--",
    )  # fmt: skip


def _containers(node: Any) -> Iterator[Any]:
    if isinstance(node, dict | list) and len(node) < 100:
        yield node
        for inner in node.values() if isinstance(node, dict) else node:
            yield from _containers(inner)


def _values(node: Any) -> Iterator[Any]:
    yield node
    if isinstance(node, dict | list):
        for inner in node.values() if isinstance(node, dict) else node:
            yield from _values(inner)
