"""`stoplab shards build/index/verify/stats`: image sets as WebDataset shards with an index."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stoplab_api.cli.run import hand_over
from stoplab_api.cli.show import AsJson, reported

app = typer.Typer(help="Image sets as WebDataset shards.", no_args_is_help=True)

Places = Annotated[
    list[str],
    typer.Argument(
        metavar="PLACE...", help="Shards as a spec names them: a folder, a path or URL, {000..009}."
    ),
]
Storage = Annotated[
    str | None, typer.Option(help="Credentials of remote shards, as secret://NAME.")
]
Threads = Annotated[int | None, typer.Option(min=1, help="Shards at once. By default a CPU each.")]


@app.command()
@reported
def build(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="SOURCE",
            help="A folder of images, a .csv or .parquet manifest, or a Hugging Face data set.",
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder of the shards.")],
    name: Annotated[str, typer.Option(help="Of the set: NAME-000000.tar …")] = "train",
    shard_size: Annotated[int, typer.Option(min=1, help="Most samples of a shard.")] = 1000,
    shuffle: Annotated[
        str | None,
        typer.Option(
            help="Seed of the samples' order, or none. By default 0; tables of images keep theirs."
        ),
    ] = None,
    threads: Threads = None,
    image: Annotated[str | None, typer.Option(help="Column of the images, or paths.")] = None,
    label: Annotated[str | None, typer.Option(help="Column of the labels.")] = None,
    key: Annotated[str | None, typer.Option(help="Column of the samples' keys.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace other shards there.")] = False,
    as_json: AsJson = False,
) -> None:
    """Build shards and their index; the same bytes by any number of threads."""
    # As one word each: a name may begin with a dash.
    words = [f"--out={out}", f"--name={name}", f"--shard-size={shard_size}"]
    given = {"shuffle": shuffle, "threads": threads, "image": image, "label": label, "key": key}
    words += [f"--{option}={value}" for option, value in given.items() if value is not None]
    words += ["--force"] if force else []
    hand_over("data.build", [*words, *_json(as_json), "--", str(source)])


@app.command()
@reported
def index(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where the .tar files lie.")],
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Write the index of shards that are there already."""
    words = [f"--index={folder}", *([f"--threads={threads}"] if threads else [])]
    hand_over("data.build", [*words, *_json(as_json)])


@app.command()
@reported
def verify(
    places: Places,
    images: Annotated[
        bool, typer.Option("--images", help="Decode every image, as training does.")
    ] = False,
    storage: Storage = None,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Look whether shards are whole and as their index says; exit code 1 if not."""
    words = [*(["--images"] if images else []), *([f"--threads={threads}"] if threads else [])]
    hand_over("data.verify", [*words, *_storage(storage), *_json(as_json), "--", *places])


@app.command()
@reported
def stats(places: Places, storage: Storage = None, as_json: AsJson = False) -> None:
    """Count samples, classes and sizes."""
    hand_over("data.stats", [*_storage(storage), *_json(as_json), "--", *places])


def _storage(reference: str | None) -> list[str]:
    return [f"--storage={reference}"] if reference else []


def _json(as_json: bool) -> list[str]:
    return ["--json"] if as_json else []
