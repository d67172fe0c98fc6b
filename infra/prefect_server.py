"""Prefect without a server to look after: one is started beside the run, unless PREFECT_API_URL names another."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

STARTUP_SECONDS = 120  # 14 on an idle machine; a loaded one must not fail for it


@contextmanager
def embedded_prefect(home: Path) -> Iterator[str]:
    """Run the block against a Prefect API and yield its address; run history stays in `home`, which is created.

    Where PREFECT_API_URL is set, that server is used and nothing is started. Console messages below a warning are
    withheld; the server receives them all.
    """
    if existing := os.environ.get("PREFECT_API_URL"):
        yield existing
        return
    home = home.expanduser().absolute()
    home.mkdir(parents=True, exist_ok=True)  # without it the server times out and does not say why
    environment = {
        "PREFECT_HOME": str(home),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": str(STARTUP_SECONDS),
        "PREFECT_CLI_COLORS": "false",
    }
    before = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)  # for the server's process and for a first import of prefect
    try:
        with _server(home) as address:
            yield address
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def _server(home: Path) -> Iterator[str]:
    from prefect.server.api.server import SubprocessASGIServer
    from prefect.settings import temporary_settings

    # prefect may have been imported before the environment was set: say it again in its own words.
    updates = {
        "home": home,
        "server.database.connection_url": f"sqlite+aiosqlite:///{home}/prefect.db",
        "server.analytics_enabled": False,
        "server.ephemeral.startup_timeout_seconds": STARTUP_SECONDS,
    }
    with temporary_settings(updates=updates):
        _quiet_console()
        server = SubprocessASGIServer()
        server.start(timeout=STARTUP_SECONDS)
        try:
            with temporary_settings(updates={"api.url": server.api_url}):
                yield server.api_url
                _drain()
        finally:
            server.stop()


def _quiet_console() -> None:
    from prefect.logging.handlers import PrefectConsoleHandler

    for logger in [logging.getLogger(), *logging.Logger.manager.loggerDict.values()]:
        for handler in getattr(logger, "handlers", []):
            if isinstance(handler, PrefectConsoleHandler):
                handler.setLevel(logging.WARNING)


def _drain() -> None:
    """Deliver the last messages and events while the server still listens."""
    import inspect

    from prefect.events.worker import EventsWorker
    from prefect.logging.handlers import APILogWorker
    from prefect.utilities.asyncutils import run_coro_as_sync

    async def drain() -> None:
        for result in (APILogWorker.drain_all(), EventsWorker.drain_all()):
            if inspect.isawaitable(result):
                await result

    run_coro_as_sync(drain())
