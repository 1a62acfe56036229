"""What routes ask for by `Depends`: a body that was read with care, known parameters only.

What waits for nothing is `async`: the framework gives a thread to each plain function, which costs
more than the function.
"""

from __future__ import annotations

import json
import math
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any, NoReturn, TypeVar

from fastapi import Request
from fastapi.dependencies.models import Dependant
from pydantic import BaseModel, ValidationError

from stoplab_api.answers import Code, FieldError
from stoplab_api.problems import ApiProblem

MAX_BODY = 1024 * 1024
MAX_DEPTH = 64
MOST_ERRORS = 100
# What `curl --data` says by itself; there are no forms here that it could be mistaken for.
JSON_TYPES = ("", "application/x-www-form-urlencoded")

M = TypeVar("M", bound=BaseModel)


async def known_parameters(request: Request) -> None:
    """400 for a query parameter that the route does not have."""
    known = set(_query_names(request.scope["route"].dependant))
    strays = [name for name in dict(request.query_params) if name not in known]
    if strays:
        message = f"unknown parameter; this call has {sorted(known) or 'none'}"
        found = [FieldError(pointer=f"?{name}", message=message) for name in strays]
        detail = f"unknown query parameter(s): {', '.join(strays)}"
        raise ApiProblem(Code.MALFORMED_REQUEST, detail, errors=found)


def body_of(model: type[M], *, may_lack: bool = False) -> Callable[[Request], Awaitable[M]]:
    """A dependency that reads the request's JSON body as ``model``; no body may be an empty one.

    Not the framework's own: that one reads before it knows who asks, takes NaN and Infinity,
    and answers 422 to text that is no JSON when no content type came with it.
    """

    async def read(request: Request) -> M:
        _check_media_type(request)
        raw = await _bounded(request)
        data = {} if may_lack and not raw else parse_json(raw)
        try:
            return model.model_validate(data)
        except ValidationError as error:
            details = error.errors(include_url=False)[:MOST_ERRORS]
            found = [_field_error(detail) for detail in details]
            detail = "; ".join(f"{one.pointer or '/'}: {one.message}" for one in found)
            raise ApiProblem(Code.INVALID_BODY, detail, errors=found) from error

    return read


def request_body(
    model: type[BaseModel], examples: Mapping[str, Any], *, required: bool = True
) -> dict[str, Any]:
    """For a route's ``openapi_extra``: what `body_of` reads, with examples by name."""
    content = {
        "schema": {"$ref": f"#/components/schemas/{model.__name__}"},
        "examples": {name: {"value": value} for name, value in examples.items()},
    }
    return {"requestBody": {"required": required, "content": {"application/json": content}}}


def parse_json(raw: bytes) -> Any:
    """JSON as RFC 8259 has it: no NaN, no infinities, no torn surrogates, not too deep."""
    try:
        text = raw.decode()
        data = json.loads(text, parse_constant=_refuse, parse_float=_finite)
        json.dumps(data, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise ApiProblem(Code.MALFORMED_REQUEST, f"the body is not JSON: {error}") from error
    if _depth(data) > MAX_DEPTH:
        raise ApiProblem(Code.MALFORMED_REQUEST, f"the body nests deeper than {MAX_DEPTH}")
    return data


def _query_names(dependant: Dependant) -> Iterator[str]:
    yield from (field.alias for field in dependant.query_params)
    for inner in dependant.dependencies:
        yield from _query_names(inner)


def _check_media_type(request: Request) -> None:
    given = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if given not in JSON_TYPES and not given.endswith(("/json", "+json")):
        detail = f"{given} is not read here; send application/json"
        raise ApiProblem(Code.UNSUPPORTED_MEDIA_TYPE, detail)


async def _bounded(request: Request) -> bytes:
    """The body; 413 as soon as it is known to be too large."""
    announced = request.headers.get("content-length", "0")
    if announced.isdecimal() and int(announced) > MAX_BODY:
        _too_large()
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > MAX_BODY:
            _too_large()
    return bytes(body)


def _too_large() -> NoReturn:
    # The rest of the body stays unread, so the connection cannot be used again.
    raise ApiProblem(
        Code.BODY_TOO_LARGE,
        f"at most {MAX_BODY} bytes are read",
        headers={"Connection": "close"},
    )


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON number")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is out of range")
    return value


def _depth(data: Any) -> int:
    level, depth = [data], 0
    while level:
        depth += 1
        level = [
            inner
            for node in level
            if isinstance(node, dict | list)
            for inner in (node.values() if isinstance(node, dict) else node)
        ]
    return depth


def _field_error(detail: Any) -> FieldError:
    """Pydantic's location as a JSON pointer; it marks a bad key of a mapping by `[key]`."""
    parts = [str(part) for part in detail["loc"] if part != "[key]"]
    escaped = (part.replace("~", "~0").replace("/", "~1") for part in parts)
    message = "unknown field" if detail["type"] == "extra_forbidden" else detail["msg"]
    return FieldError(pointer="".join(f"/{part}" for part in escaped), message=message)
