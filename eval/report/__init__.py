"""The report: one self-contained HTML page about one run or several.

It knows nothing of pruning: cuts, sink maps and metrics come as plain JSON and tensor files (`eval.report.data`), and
every section of the page is one file (`eval.report.sections`).
"""

from eval.report.data import FORMAT, RunData, load_run
from eval.report.page import render

__all__ = ["FORMAT", "RunData", "load_run", "render"]
