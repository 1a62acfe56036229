"""What a backup may hold beside what it always holds."""

from __future__ import annotations

from enum import StrEnum


class Extra(StrEnum):
    """What a backup holds only when asked to."""

    CHECKPOINTS = "checkpoints"
    LOGS = "logs"
    TOKENS = "tokens"
    SECRETS = "secrets"
