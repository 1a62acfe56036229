"""Which exception becomes which problem. Every answer from 400 up is made here."""

from __future__ import annotations

import logging
from collections.abc import Callable

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.routing import Match

from stoplab_api.answers import Code, FieldError
from stoplab_api.problems import KINDS, ApiProblem, answer, field_errors
from stoplab_platform import errors

_log = logging.getLogger("stoplab.api")

PLAIN: dict[type[Exception], Code] = {
    errors.NotFound: Code.NOT_FOUND,
    errors.Forbidden: Code.FORBIDDEN,
    errors.Conflict: Code.CONFLICT,
    errors.KeyReused: Code.KEY_REUSED,
    errors.RunnerUnavailable: Code.CLUSTER_UNAVAILABLE,
    errors.TrackerUnavailable: Code.TRACKER_UNAVAILABLE,
}
"""The platform's errors whose sentence is the detail."""
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")


def install(app: FastAPI) -> None:
    """Give the app its exception handlers."""
    for raised, code in PLAIN.items():
        app.add_exception_handler(raised, _plain(code))
    app.add_exception_handler(errors.StoreUnavailable, _database_away)
    app.add_exception_handler(ApiProblem, _problem)
    app.add_exception_handler(errors.SpecError, _spec)
    app.add_exception_handler(errors.IllegalMove, _illegal_move)
    app.add_exception_handler(RequestValidationError, _parameters)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(Exception, _internal)


def _plain(code: Code) -> Callable[[Request, Exception], JSONResponse]:
    def handle(request: Request, error: Exception) -> JSONResponse:
        return answer(request, ApiProblem(code, str(error)))

    return handle


def _database_away(request: Request, error: Exception) -> JSONResponse:
    """The driver's words name hosts and ports, and who asks is not known yet: the log has them."""
    _log.warning("%s", error)
    return answer(request, ApiProblem(Code.DATABASE_UNAVAILABLE, "the database does not answer"))


def _problem(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ApiProblem)
    return answer(request, error)


def _spec(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, errors.SpecError)
    found = field_errors(error.problems, "/spec")
    detail = f"{len(found)} problem(s) in the spec"
    return answer(request, ApiProblem(Code.INVALID_SPEC, detail, errors=found))


def _illegal_move(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, errors.IllegalMove)
    more = {"state": error.state, "allowed_actions": list(error.allowed)}
    return answer(request, ApiProblem(Code.ILLEGAL_MOVE, str(error), more=more))


def _parameters(request: Request, error: Exception) -> JSONResponse:
    """Query, path and header parameters; bodies are read by `deps.body_of`."""
    assert isinstance(error, RequestValidationError)
    found = [_parameter(detail["loc"], detail["msg"]) for detail in error.errors()]
    detail = "; ".join(f"{one.pointer}: {one.message}" for one in found)
    return answer(request, ApiProblem(Code.MALFORMED_REQUEST, detail, errors=found))


def _parameter(loc: tuple[str | int, ...], message: str) -> FieldError:
    place, name, *_ = (str(part) for part in loc)
    sign = {"query": "?", "header": "header ", "path": "path "}[place]
    return FieldError(pointer=f"{sign}{name}", message=message)


def _http(request: Request, error: Exception) -> JSONResponse:
    """What the framework raises by itself: unknown paths and methods."""
    assert isinstance(error, HTTPException)
    of_status = {kind.status: code for code, kind in reversed(KINDS.items())}
    code = of_status.get(error.status_code, Code.MALFORMED_REQUEST)
    detail = f"{request.method} {request.url.path}: {error.detail}"
    headers = dict(error.headers or {})
    if code is Code.METHOD_NOT_ALLOWED:
        headers["Allow"] = ", ".join(_methods(request))
    return answer(request, ApiProblem(code, detail, headers=headers))


def _methods(request: Request) -> list[str]:
    """Every method of the path; the framework names those of one route, and a path has several."""

    def has(method: str) -> bool:
        scope = {**request.scope, "method": method}
        return any(route.matches(scope)[0] is Match.FULL for route in request.app.router.routes)

    return [method for method in METHODS if has(method)]


def _internal(request: Request, error: Exception) -> JSONResponse:
    """A mistake of ours: the log has the traceback, the answer its request id."""
    return answer(request, ApiProblem(Code.INTERNAL, "the request was not carried out"))
