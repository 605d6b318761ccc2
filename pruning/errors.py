"""The one error of the project; torch-free, so that the command can say it before anything heavy is imported."""

from __future__ import annotations


class PruningError(ValueError):
    """A user's mistake or an impossible request; the message names value, rule and place."""
