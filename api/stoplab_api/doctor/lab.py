"""The local lab of the home: its processes and ports, and a shell that means another one."""

from __future__ import annotations

from collections.abc import Iterator

from stoplab_api import local
from stoplab_api.doctor.finding import Finding
from stoplab_api.lab_parts import PARTS, PREFERRED_PORTS
from stoplab_api.lab_processes import is_free
from stoplab_platform.settings import Settings


def lab_parts(settings: Settings) -> Iterator[Finding]:
    """Ports where no lab runs, else its parts."""
    home = settings.folders
    lab = local.find(home)
    if lab is None:
        taken = [f"{part} {port}" for part, port in PREFERRED_PORTS.items() if not is_free(port)]
        detail = f"taken, so `up` draws others: {', '.join(taken)}" if taken else "free"
        yield Finding("ports", True, detail)
        yield Finding("lab", True, f"none runs in {home.root}; `stoplab up` starts one")
        return
    for part in PARTS:
        alive = lab.is_alive(part)
        ready = alive and PARTS[part].is_ready(lab.place)
        state = "answers" if ready else "does not answer" if alive else "is dead"
        cure = f"see {home.server_log(part)}; " + (
            "`stoplab down`, then `stoplab up`" if alive else "`stoplab up` starts it again"
        )
        yield Finding(f"lab {part}", ready, f"{state} at {lab.place.url(part)}", cure)
    named = {"RAY_ADDRESS": ("ray", settings.ray_address)}
    named["STOPLAB_API_URL"] = ("api", settings.api_url)
    for variable, (part, url) in named.items():
        if url is not None:
            yield Finding(
                "environment", url == lab.place.url(part), f"{variable} is {url}",
                'it names another lab than this home\'s: eval "$(stoplab env)"',
            )  # fmt: skip
