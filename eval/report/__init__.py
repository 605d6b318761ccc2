"""The report: one self-contained HTML file and its markdown twin, from one run directory or several.

`eval.report.load` says what is read. It knows nothing of pruning: cuts, sink maps and metrics come as plain JSON and
tensor files.
"""

from eval.report.page import build

__all__ = ["build"]
