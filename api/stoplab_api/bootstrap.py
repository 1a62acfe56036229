"""Makes a new lab usable: tables, and the first administrator's token, which comes from a file.

    python -m stoplab_api.bootstrap /run/secrets/admin_token

Run again it changes nothing. The file stays where it is: the database keeps a hash.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from stoplab_platform.errors import SettingsError, StoplabError
from stoplab_platform.jobs.models import Role
from stoplab_platform.jobs.store import JobStore
from stoplab_platform.settings import Settings

LEAST_CHARS = 32


def bootstrap(settings: Settings, secret: str) -> bool:
    """Bring the tables up to date, and let ``secret`` in; whether it was new."""
    if len(secret) < LEAST_CHARS:
        raise SettingsError(f"the token has {len(secret)} characters; give {LEAST_CHARS} or more")
    store = JobStore(settings.database)
    try:
        store.migrate()
        if store.principal(secret) is not None:
            return False
        store.create_token(
            "bootstrap", owner="admin", project="default", role=Role.ADMIN, secret=secret
        )
        return True
    finally:
        store.close()


def main() -> int:
    """Parse, do it, and say what was done."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("token_file", type=Path, help="file of the administrator's token")
    arguments = parser.parse_args()
    try:
        new = bootstrap(Settings(), arguments.token_file.read_text().strip())
    except (OSError, StoplabError) as error:
        print(error, file=sys.stderr)
        return 1
    print("the administrator's token is registered" if new else "the token was known already")
    return 0


if __name__ == "__main__":
    sys.exit(main())
