"""The OpenAPI 3.1 page. ``python -m stoplab_api.openapi`` prints it."""

from __future__ import annotations

import json
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema

from stoplab_api.answers import Code, ProblemBody
from stoplab_api.bodies import ExtendBody, NewTokenBody, PatchBody, RetryBody, SubmitBody
from stoplab_api.findings import EstimateAsk
from stoplab_api.problems import documented
from stoplab_platform.specs import KINDS
from stoplab_platform.specs.schema import StrictSchema

TITLE = "stoplab"
VERSION = "v1"
DESCRIPTION = """Experiments with stochastic positional embeddings: submit specs, watch jobs, read
verdicts. Errors are RFC 9457 problems; every answer carries `X-Request-ID`.

```
curl -H "Authorization: Bearer $TOKEN" -H "Content-Type: application/json" \\
     -H "Idempotency-Key: monday-1" -d '{"spec": {...}}' http://127.0.0.1:8000/v1/jobs
```
"""
OWN_MODELS = (
    SubmitBody, EstimateAsk, ExtendBody, PatchBody, RetryBody, NewTokenBody, ProblemBody,
    *KINDS.values(),
)  # fmt: skip
"""Models that no route declares to the framework by itself."""
FRAMEWORK_ERRORS = ("HTTPValidationError", "ValidationError")


def document(app: FastAPI) -> dict[str, Any]:
    """The page of ``app``; made once, then kept."""
    if app.openapi_schema is None:
        page = get_openapi(title=TITLE, version=VERSION, description=DESCRIPTION, routes=app.routes)
        _add_models(page["components"]["schemas"])
        for methods in page["paths"].values():
            for operation in methods.values():
                _add_problems(operation)
                _tighten(operation)
        app.openapi_schema = page
    return app.openapi_schema


def _add_models(schemas: dict[str, Any]) -> None:
    _, extra = models_json_schema(
        [(model, "validation") for model in OWN_MODELS],
        ref_template="#/components/schemas/{model}",
        schema_generator=StrictSchema,
    )
    for name in FRAMEWORK_ERRORS:
        schemas.pop(name, None)
    schemas.update(extra["$defs"])
    specs = [{"$ref": f"#/components/schemas/{model.__name__}"} for model in KINDS.values()]
    mapping = {kind: ref["$ref"] for kind, ref in zip(KINDS, specs, strict=True)}
    for body in (SubmitBody, EstimateAsk):
        schemas[body.__name__]["properties"]["spec"] |= {
            "oneOf": specs,
            "discriminator": {"propertyName": "kind", "mapping": mapping},
        }


def _add_problems(operation: dict[str, Any]) -> None:
    """What every route may answer, beside what it documents itself."""
    responses = operation["responses"]
    if "HTTPValidationError" in json.dumps(responses.get("422", {})):
        del responses["422"]
    codes = [Code.INTERNAL, Code.MALFORMED_REQUEST]
    if "security" in operation:
        codes += [Code.UNAUTHENTICATED, Code.RATE_LIMITED, Code.DATABASE_UNAVAILABLE]
    if "requestBody" in operation:
        codes += [Code.UNSUPPORTED_MEDIA_TYPE, Code.INVALID_BODY]
    for status, response in documented(*codes).items():
        responses.setdefault(str(status), response)
    operation["responses"] = dict(sorted(responses.items()))


def _tighten(operation: dict[str, Any]) -> None:
    """A parameter may be absent, but it is never null; `If-Match` must be there where 428 says so.

    (The framework itself would answer 400 without it.)
    """
    for parameter in operation.get("parameters", ()):
        schema = parameter["schema"]
        if kinds := [one for one in schema.pop("anyOf", ()) if one != {"type": "null"}]:
            schema |= kinds[0]
        if parameter["name"] == "if-match" and "428" in operation["responses"]:
            parameter["required"] = True


if __name__ == "__main__":
    # The app stands on this module, so it can only be had once this one is complete.
    from stoplab_api.app import create_app
    from stoplab_platform.settings import Settings

    print(json.dumps(document(create_app(Settings())), indent=1, sort_keys=True))
