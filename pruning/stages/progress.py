"""Progress bars for long work, on standard error; nothing is drawn where that is not a terminal."""

from __future__ import annotations

import sys

from tqdm import tqdm


class Bars:
    """One bar at a time, driven by calls ``(what, done, total)``.

    Args:
        enabled: Draw at all.
    """

    def __init__(self, enabled: bool = True) -> None:
        self.enabled = enabled
        self._bar: tqdm | None = None
        self._what = ""

    def __call__(self, what: str, done: int, total: int) -> None:
        """Show that `done` of `total` are done; a total of 0 is unknown."""
        if not self.enabled:
            return
        if self._bar is None or what != self._what:
            self.close()
            self._what = what
            self._bar = tqdm(
                total=total or None,
                desc=f"  {what}",
                file=sys.stderr,
                disable=None,
                leave=False,
                dynamic_ncols=True,
            )
        self._bar.update(done - self._bar.n)
        if total and done >= total:
            self.close()

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.close()
        self._bar, self._what = None, ""
