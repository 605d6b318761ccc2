"""What leaves the house: one file a back end. A new one is one new file here with a function under `exporter`."""

from pruning.export.base import EXPORTERS, ExportRequest, ExportResult, export, exporter
from pruning.registry import import_submodules

import_submodules(__name__, list(__path__))

__all__ = ["EXPORTERS", "ExportRequest", "ExportResult", "export", "exporter"]
