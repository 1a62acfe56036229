#!/usr/bin/env python3
"""Asks a server of the same container whether it is well; exit code 0 if it is.

    probe URL [CHECK]...

With CHECKs (names in the answer of `/readyz`) these alone count, whatever the others say: that
Ray is away makes no replica of the API unfit to take jobs. A container's own address needs no
token, so none is here.
"""

from __future__ import annotations

import json
import sys
from urllib.error import HTTPError, URLError
from urllib.request import ProxyHandler, build_opener

TIMEOUT_S = 4.0


def main(url: str, *checks: str) -> str | None:
    """What is wrong; None when nothing is."""
    # Never by way of a proxy that the environment names.
    opener = build_opener(ProxyHandler({}))
    try:
        with opener.open(url, timeout=TIMEOUT_S) as answer:
            body = answer.read()
    except HTTPError as error:
        if not checks:
            return f"{url}: {error}"
        body = error.read()
    except (URLError, OSError) as error:
        return f"{url}: {error}"
    return _failed(json.loads(body)["checks"], checks) if checks else None


def _failed(said: dict[str, dict[str, str]], checks: tuple[str, ...]) -> str | None:
    wrong = [f"{name}: {said[name]['message']}" for name in checks if not said[name]["ok"]]
    return "; ".join(wrong) or None


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
