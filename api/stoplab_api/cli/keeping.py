"""`stoplab prune`, `backup`, `restore`: by whoever holds the home."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Annotated, Any

import typer

from stoplab_api.cli.connecting import connect
from stoplab_api.cli.show import AsJson, print_json, print_table, print_text, reported, say
from stoplab_api.lab_secrets import opened
from stoplab_platform.extras import Extra
from stoplab_platform.settings import Settings

UNITS = ("B", "kB", "MB", "GB", "TB")

DryRun = Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")]


@reported
def prune(dry_run: DryRun = False, as_json: AsJson = False) -> None:
    """Remove what the settings do not keep: STOPLAB_KEEP_…_DAYS, STOPLAB_CACHE_BYTES.

    The API does the same once a day. Unfinished jobs, what they need, and results stay.
    """
    # The database's toolkit takes as long to import as all else that the command line needs.
    from stoplab_api.app import default_runner
    from stoplab_platform.attempts import Attempts
    from stoplab_platform.retention import Due, Retention

    settings = Settings()
    with opened(settings) as store:
        forget = Attempts(default_runner(settings), settings).forget
        retention = Retention(store, settings, forget)
        due = retention.due()
        if not dry_run:
            retention.apply(due)
    freed = sum(item.bytes for item in due)
    if as_json:
        items = [
            {"kind": item.kind, "job_id": item.job_id, "bytes": item.bytes, "count": item.count,
             "paths": [*map(str, item.paths), *item.urls]}
            for item in due
        ]  # fmt: skip
        print_json({"dry_run": dry_run, "bytes": freed, "items": items})
        return
    kinds: dict[str, list[Due]] = defaultdict(list)
    for item in due:
        kinds[item.kind].append(item)
    rows = [
        (kind, sum(item.count for item in items), spelled(sum(item.bytes for item in items)))
        for kind, items in kinds.items()
    ]
    print_table(("what", "how many", "size"), rows)
    print_text(f"{spelled(freed)} {'would be' if dry_run else 'are'} freed")


@reported
def events(
    after: Annotated[int, typer.Option(help="Number of the last event that is known.")] = 0,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Most events.")] = 100,
    actor: Annotated[str | None, typer.Option(help="Done by this owner.")] = None,
    verb: Annotated[str | None, typer.Option(help="Of this kind, as `token.create`.")] = None,
    as_json: AsJson = False,
) -> None:
    """Print what happened in the project: who did what to which job or token."""
    with connect() as client:
        page = client.project_events(after=after, limit=limit, actor=actor, verb=verb)
    if as_json:
        print_json(page)
        return
    columns = ("seq", "at", "actor", "verb", "job", "from", "to", "reason", "message")
    rows = [
        (e.seq, f"{e.at:%Y-%m-%d %H:%M:%S}", e.actor, e.verb, e.job_id, e.from_state, e.to_state,
         e.reason_code, e.message)
        for e in page.items
    ]  # fmt: skip
    print_table(columns, rows)
    if page.next_after is not None:
        say(f"more: --after {page.next_after}")


@reported
def backup(
    target: Annotated[Path, typer.Argument(metavar="PATH", help="The file to write: a tar.")],
    extras: Annotated[
        list[Extra] | None,
        typer.Option("--with", help="What else it shall hold; may be repeated."),
    ] = None,
    files_only: Annotated[
        bool, typer.Option("--files-only", help="Without the databases, copied otherwise.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Write the lab into one file, also while jobs run: databases, specs, ledgers, results."""
    from stoplab_platform.backup import backup as write  # as heavy as the store

    manifest = write(Settings(), target.absolute(), extras or (), database=not files_only)
    _told(target, manifest, as_json)


@reported
def restore(
    source: Annotated[Path, typer.Argument(metavar="PATH", help="A file of `stoplab backup`.")],
    home: Annotated[
        Path | None, typer.Option(help="An empty or new folder. Default STOPLAB_HOME.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make a home of a backup; every file is checked. Jobs that ran start again with the lab."""
    from stoplab_platform.backup import restore as read  # as heavy as the store

    root = (home or Settings().home).absolute()
    _told(root, read(source, root), as_json)


def _told(path: Path, manifest: dict[str, Any], as_json: bool) -> None:
    size = sum(file["bytes"] for file in manifest["files"].values())
    if as_json:
        print_json({"path": str(path), "files": len(manifest["files"]), "bytes": size})
    else:
        print_text(f"{path}  {len(manifest['files'])} files, {spelled(size)}")


def spelled(size: float) -> str:
    """Bytes for people."""
    for unit in UNITS[:-1]:
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} {UNITS[-1]}"
