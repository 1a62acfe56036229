"""YAML as people write it: ``1e-3`` is a number, as in YAML 1.2 and in JSON."""

from __future__ import annotations

import re
from typing import Any

import yaml


class _Loader(yaml.SafeLoader):
    """PyYAML's own takes a number with an exponent for a text, unless it has a dot and a sign."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)[eE][-+]?[0-9]+$"),
    list("-+.0123456789"),
)


def read_yaml(text: str) -> Any:
    """Plain data; yaml.YAMLError where the text is no YAML."""
    return yaml.load(text, Loader=_Loader)
