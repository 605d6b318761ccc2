"""What is written for others: one file per back end. A new one is one new file with a function under `exporter`."""

from pruning.export.base import EXPORTERS, ExportRequest, check_export, export, exporter
from pruning.export.card import Facts
from pruning.registry import import_submodules

import_submodules(__name__, list(__path__))

__all__ = ["EXPORTERS", "ExportRequest", "Facts", "check_export", "export", "exporter"]
