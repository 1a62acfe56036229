"""`stoplab doctor`: what is wrong with this machine or its lab, and how to mend it."""

from __future__ import annotations

from dataclasses import asdict

import typer

from stoplab_api.cli.show import AsJson, print_json, print_text, reported
from stoplab_api.doctor.examine import examine
from stoplab_api.doctor.finding import Finding
from stoplab_platform.exits import Exit
from stoplab_platform.settings import Settings


@reported
def doctor(as_json: AsJson = False) -> None:
    """Look for what is wrong, and say how to mend it; exit code 1 if something is."""
    found = []
    for finding in examine(Settings()):
        found.append(finding)
        if not as_json:
            _print(finding)
    wrong = [finding for finding in found if not finding.ok]
    if as_json:
        print_json({"ok": not wrong, "checks": [asdict(finding) for finding in found]})
    else:
        print_text(f"{len(wrong)} of {len(found)} are wrong" if wrong else "nothing is wrong")
    raise typer.Exit(Exit.FAILED if wrong else Exit.OK)


def _print(finding: Finding) -> None:
    print_text(f"{'ok   ' if finding.ok else 'WRONG'} {finding.name}: {finding.detail}")
    if not finding.ok and finding.cure:
        print_text(f"      mend: {finding.cure}")
