"""The sections of a report: one file each, which reads what it needs of a run, says it in words and draws it.

A file has ``PLACE``, by which sections are ordered, and ``section(run)``, which returns what is shown, or None where
there is nothing to show. Files are found by their names; a new picture is one new file. A picture that belongs to a
section of another file says so in ``WITHIN`` and stands at that section's end.
"""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import replace

from eval.report.data import RunData
from eval.report.html import Section
from eval.report.provenance import note, noted


def sections(run: RunData) -> dict[str, Section]:
    """Return by file name all sections that have something to show, with the pictures that belong to them.

    Each ends with where its numbers come from, where the run says that.
    """
    files = [importlib.import_module(f"{__name__}.{entry.name}") for entry in pkgutil.iter_modules(__path__)]
    found: dict[str, Section] = {}
    read: dict[str, set[str]] = {}
    for file in sorted(files, key=lambda file: file.PLACE):
        name = file.__name__.rpartition(".")[2]
        within = getattr(file, "WITHIN", name)
        if within != name and within not in found:
            continue
        watched, entries = noted(run)
        if (shown := file.section(watched)) is None:
            continue
        read.setdefault(within, set()).update(entries)
        if within in found:
            shown = replace(found[within], body=found[within].body + shown.body)
        found[within] = shown
    return {name: replace(shown, body=shown.body + note(run, read[name])) for name, shown in found.items()}
