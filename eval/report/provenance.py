"""Where the numbers of a section come from: files of the run, stages and their settings, by what the section read.

No section says this of itself. While it is drawn, the entries of the data that it reads are noted; the run says of each
entry which files it was gathered from (``sources``), and of each stage how its result came about (``provenance``).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from markupsafe import Markup

from eval.report.data import RunData, leaves
from eval.report.html import template

NOTE = template(
    """
<details class="source"><summary>Where this comes from</summary>
{% for stage in stages %}
<p><b>{{ stage.files | join(", ") }}</b>{% for text in stage.facts %} · {{ text }}{% endfor %}</p>
{% if stage.settings %}<p class="path">{{ stage.settings | join(" · ") }}</p>{% endif %}
{% endfor %}
{% if versions %}<p>{{ versions }}</p>{% endif %}
</details>
"""
)


HASH = re.compile(r"\b([0-9a-f]{12})[0-9a-f]{20,}\b")


class Noted(Mapping[str, Any]):
    """A mapping that notes in `read` which of its entries were asked for."""

    def __init__(self, data: Mapping[str, Any]) -> None:
        self._data = data
        self.read: set[str] = set()

    def __getitem__(self, key: str) -> Any:
        self.read.add(key)
        return self._data[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._data)

    def __len__(self) -> int:
        return len(self._data)


def noted(run: RunData) -> tuple[RunData, set[str]]:
    """Return a run with the same data, and the set into which the entries come that are read of it."""
    data = Noted(run.data)
    return replace(run, data=data), data.read


def note(run: RunData, read: Iterable[str]) -> Markup:
    """Return what is said under a section that read these entries; nothing for runs that say nothing of it."""
    sources, stages = run.entry("sources"), run.entry("provenance")
    files = sorted({file for entry in read for file in sources.get(entry, ())})
    by_stage: dict[str, list[str]] = {}
    for file in files:
        by_stage.setdefault(file.partition("/")[0], []).append(file)
    said = [
        {"files": names, "facts": list(_facts(stages[name])), "settings": _settings(stages[name])}
        for name, names in by_stage.items()
        if name in stages
    ]
    if not said:
        return Markup("")
    versions = {
        key: text for name in by_stage for key, text in stages.get(name, {}).get("versions", {}).items()
    }
    return NOTE(stages=said, versions=", ".join(f"{key} {text}" for key, text in versions.items()))


def _facts(stage: Mapping[str, Any]) -> Iterator[str]:
    yield f"result {stage['result']}"
    if "seed" in stage:
        yield f"seed {stage['seed']}"
    if "device" in stage:
        yield stage["device"]
    if "finished" in stage:
        yield stage["finished"].replace("T", " ")


def _settings(stage: Mapping[str, Any]) -> list[str]:
    """Return the settings that are set; the data have those that are null, too, and hashes in full."""
    known = leaves(stage.get("settings") or {})
    return [f"{key} {_shown(value)}" for key, value in known if value is not None]


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return HASH.sub(r"\1…", text)
