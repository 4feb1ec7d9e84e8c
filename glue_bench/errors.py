"""The errors a user sees. Everything that is the user's to mend is a UserError: one or two lines, no traceback."""


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
