"""The errors a user sees. Everything that is the user's to mend is a UserError: one or two lines, no traceback."""

import os
import re
import unicodedata

# Environment variables whose values are nobody's business, by their names; shorter values are no secrets.
SECRET_NAMES = re.compile(r"TOKEN|SECRET|PASSW|CREDENTIAL|API_?KEY|ACCESS_KEY|PRIVATE", re.IGNORECASE)
SHORTEST_SECRET = 8
MOST_LINES = 2


class GlueBenchError(Exception):
    """Base of the errors that the command line prints without a traceback; `exit_code` is the process's exit status."""

    exit_code = 3


class UserError(GlueBenchError):
    """Bad usage, config or data, or something missing: what is wrong, where, and what would be right (exit 2)."""

    exit_code = 2


class ConfigError(UserError):
    """A setting that is unknown, ill-typed or out of range; the message starts with the file and the key path."""


class StepError(GlueBenchError):
    """A step that failed while it ran, for a reason the message names (exit 3)."""


def redo(folder: object) -> str:
    """The remedy for a damaged step: what to delete so that the next run makes it anew."""
    return f"delete {folder} and run again: the step is computed anew"


def printable(message: str) -> str:
    """A message as it may be shown: at most two lines, no control characters of a name or a file, no secrets."""
    lines = [line for line in without_secrets(message).split("\n") if line.strip()] or [""]
    lines = [*lines[: MOST_LINES - 1], " ".join(lines[MOST_LINES - 1 :])]
    return "\n".join("".join(one if _is_shown(one) else ascii(one)[1:-1] for one in line) for line in lines if line)


def without_secrets(text: str) -> str:
    """The text without passwords in addresses and without the values of secret environment variables."""
    for name, value in os.environ.items():
        if SECRET_NAMES.search(name) and len(value) >= SHORTEST_SECRET:
            text = text.replace(value, "***")
    return re.sub(r"(?<=://)[^/\s@]+@", "***@", text)


def _is_shown(character: str) -> bool:
    return character.isprintable() or unicodedata.category(character) == "Zs"
