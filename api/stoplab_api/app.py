"""The server: assembly, and ``python -m stoplab_api.app --host 127.0.0.1 --port 8000``."""

from __future__ import annotations

import argparse
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import uvicorn
from fastapi import APIRouter, Depends, FastAPI

from stoplab_api import handlers, openapi
from stoplab_api.auth import caller
from stoplab_api.context import Lab
from stoplab_api.deps import known_parameters
from stoplab_api.instruments import Instruments
from stoplab_api.measures import LabCollector
from stoplab_api.middleware import RequestLog
from stoplab_api.rates import Rates
from stoplab_api.routers import (
    artifacts,
    estimates,
    events,
    health,
    jobs,
    logs,
    meta,
    metrics,
    studies,
    tokens,
)
from stoplab_platform import logs as log_lines
from stoplab_platform.jobs.store import JobStore
from stoplab_platform.reconciler import Reconciler
from stoplab_platform.runner.base import Runner
from stoplab_platform.runner.local import LocalRunner
from stoplab_platform.runner.ray_jobs import RayJobsRunner
from stoplab_platform.service import Jobs
from stoplab_platform.settings import Settings

GRACE_S = 5
"""Seconds that open requests have to end after SIGTERM."""


def create_app(
    settings: Settings,
    *,
    store: JobStore | None = None,
    runner: Runner | None = None,
    reconcile: bool = True,
) -> FastAPI:
    """The application. While it runs it holds the store, and the reconciler's thread."""
    instruments = Instruments()
    app = FastAPI(
        lifespan=_lifespan(settings, store, runner, reconcile, instruments),
        dependencies=[Depends(known_parameters)],
        openapi_url="/openapi.json",
        docs_url=None,  # their scripts come from elsewhere, and would see tokens
        redoc_url=None,
        telemetry={"tracing": False, "metrics": False, "logs": False},
    )
    app.add_middleware(RequestLog, instruments=instruments)
    handlers.install(app)
    guarded = APIRouter(prefix="/v1", dependencies=[Depends(caller)])
    for part in (jobs, estimates, logs, metrics, artifacts, studies, meta, tokens, events):
        guarded.include_router(part.router)
    app.include_router(guarded)
    app.include_router(meta.open_router, prefix="/v1")
    app.include_router(health.router)
    app.openapi = lambda: openapi.document(app)  # type: ignore[method-assign]
    return app


class Server(uvicorn.Server):
    """Tells open streams that the server stops; they would keep it waiting."""

    def __init__(self, config: uvicorn.Config, app: FastAPI) -> None:
        super().__init__(config)
        self._app = app

    async def shutdown(self, sockets: list[Any] | None = None) -> None:
        """Stop listening, let requests end, stop the reconciler."""
        self._app.state.lab.closing.set()
        await super().shutdown(sockets)


def serve(app: FastAPI, *, host: str, port: int) -> Server:
    """A server for ``app`` that is not running yet."""
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        access_log=False,
        log_config=None,
        timeout_graceful_shutdown=GRACE_S,
        server_header=False,
    )
    return Server(config, app)


def main() -> None:
    """Serve until SIGTERM or Ctrl-C."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, default=8000, help="0: any free one, told in the log")
    arguments = parser.parse_args()
    settings = Settings()
    log_lines.set_up(settings)
    serve(create_app(settings), host=arguments.host, port=arguments.port).run()


def _lifespan(
    settings: Settings,
    store: JobStore | None,
    runner: Runner | None,
    reconcile: bool,
    instruments: Instruments,
) -> Callable[[FastAPI], Any]:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        with _opened(settings, store, runner, reconcile, instruments) as lab:
            app.state.lab = lab
            yield

    return lifespan


@contextmanager
def _opened(
    settings: Settings,
    given: JobStore | None,
    runner: Runner | None,
    reconcile: bool,
    instruments: Instruments,
) -> Iterator[Lab]:
    """The parts of a lab, given ones as they are; ends the reconciler, then the own store."""
    store = given or JobStore(settings.database)
    store.migrate()
    runner = runner or default_runner(settings)
    reconciler = Reconciler(store, runner, settings)
    stop = threading.Event()
    heart = threading.Thread(target=reconciler.run_forever, args=(stop,), name="reconciler")
    lab = Lab(
        settings=settings,
        store=store,
        jobs=Jobs(store, settings, reconciler.waiting, reconciler.wake),
        runner=runner,
        rates=Rates.of(settings),
        reconciler=reconciler,
        instruments=instruments,
        heart=heart if reconcile else None,
    )
    if reconcile:
        heart.start()
    try:
        with instruments.watching(LabCollector(lab)):
            yield lab
    finally:
        lab.closing.set()
        stop.set()
        reconciler.wake()
        if reconcile:
            heart.join()
        if given is None:
            store.close()


def default_runner(settings: Settings) -> Runner:
    """Ray Jobs where RAY_ADDRESS is a dashboard's, else processes on this machine."""
    if settings.ray_address and settings.ray_address.startswith(("http://", "https://")):
        return RayJobsRunner(settings.ray_address, settings.ray_auth_token_path)
    return LocalRunner(settings.folders.root / "runner")


if __name__ == "__main__":
    main()
