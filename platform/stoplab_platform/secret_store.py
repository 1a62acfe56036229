"""Secrets by name. Specs and settings hold `secret://NAME`; only who uses a value reads it.

The value is a file of the home (`secrets/PROJECT/NAME`, 0600), or, where there is none, the
environment's `STOPLAB_SECRET_NAME`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from stoplab_platform.errors import SettingsError
from stoplab_platform.files import is_plain_name
from stoplab_platform.redaction import hide
from stoplab_platform.secret_files import write_secret
from stoplab_platform.settings import Settings

REFERENCE = re.compile(r"secret://([A-Za-z0-9][\w.-]{0,62})", re.ASCII)


class Secrets:
    """The secrets of one project, by default the one that this process works for."""

    def __init__(self, settings: Settings, project: str | None = None) -> None:
        self._settings, self._project = settings, project or settings.project
        if not is_plain_name(self._project):
            raise SettingsError(f"{self._project!r} is no project's name")
        self._folder = settings.folders.secrets(self._project)

    def value(self, name: str) -> str:
        """A secret, which this process hides from now on; SettingsError when there is none."""
        found = self._find(name)
        if found is None:
            raise SettingsError(
                f"there is no secret {name!r} in the project {self._project}; "
                f"`stoplab secrets set {name}` makes it"
            )
        hide(found, f"secret://{name}")
        return found

    def known(self, name: str) -> bool:
        """Whether there is one of this name."""
        return self._find(name) is not None

    def plain(self, text: str) -> str:
        """The secret that a text refers to, or the text itself."""
        found = REFERENCE.fullmatch(text)
        return text if found is None else self.value(found[1])

    def options(self, reference: str) -> dict[str, Any]:
        """A secret that is a JSON object; its texts are hidden as well."""
        name = reference.removeprefix("secret://")
        value = self.value(name)
        try:
            options = json.loads(value)
        except ValueError:
            options = None
        if not isinstance(options, dict):
            raise SettingsError(f"the secret {name!r} is no JSON object, as options must be")
        for _, text in texts(options):
            hide(text, f"secret://{name}")
        return options

    def hide_those_in(self, spec: Any) -> None:
        """Hide what a spec refers to, options too; SettingsError where one does not exist."""
        for _, name in references(spec):
            if self.value(name).lstrip().startswith("{"):
                self.options(name)

    def names(self) -> list[str]:
        """Those that are kept in the home."""
        if not self._folder.is_dir():
            return []
        return sorted(file.name for file in self._folder.iterdir() if file.name[0] != ".")

    def set(self, name: str, value: str) -> None:
        """Keep a secret in the home, instead of what had its name."""
        if not REFERENCE.fullmatch(f"secret://{name}"):
            raise SettingsError(
                f"{name!r} cannot name a secret: letters, digits, `.`, `_` and `-`, the first "
                "a letter or digit"
            )
        if not value:
            raise SettingsError("an empty secret is none")
        write_secret(self._folder / name, value)

    def remove(self, name: str) -> bool:
        """Forget a secret of the home; False when there was none."""
        if name not in self.names():
            return False
        (self._folder / name).unlink()
        return True

    def _find(self, name: str) -> str | None:
        if name in self.names():
            return (self._folder / name).read_text()
        return self._settings.secret_variable(name)


def references(data: Any) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """Where plain data refers to secrets, and their names."""
    for path, text in texts(data):
        if found := REFERENCE.fullmatch(text):
            yield path, found[1]


def texts(
    data: Any, path: tuple[str | int, ...] = ()
) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """All texts in plain data and where they stand."""
    if isinstance(data, str):
        yield path, data
    elif isinstance(data, dict):
        for key, value in data.items():
            yield from texts(value, (*path, key))
    elif isinstance(data, list | tuple):
        for index, value in enumerate(data):
            yield from texts(value, (*path, index))
