"""The report: one self-contained HTML page about one run or several, drawn from plain JSON and tensor files."""

from eval.report.data import FORMAT, RunData, load_run
from eval.report.page import render

__all__ = ["FORMAT", "RunData", "load_run", "render"]
