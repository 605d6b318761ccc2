"""What a subject shows of itself: tensors and facts, in memory or in a folder.

In a folder an observation is ``<name>.json``, its facts, and ``<name>.safetensors``, its tensors.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor


@dataclass(frozen=True)
class Observation:
    """One thing that a subject shows: tensors on the CPU and facts of JSON types, by name."""

    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)

    def save(self, folder: Path, name: str) -> None:
        """Write to `folder`, the facts last: where they are, the observation is whole."""
        if self.tensors:
            tensors = {key: value.contiguous() for key, value in self.tensors.items()}
            save_file(tensors, folder / f"{name}.safetensors")
        facts = json.dumps({"tensors": sorted(self.tensors), "facts": dict(self.facts)}, indent=1)
        (folder / f"{name}.json").write_text(facts + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path, name: str) -> Observation:
        """Read what `save` wrote; tensors are mapped from the disk.

        Raises:
            ValueError: If it is not there or cannot be read.
        """
        try:
            data = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
            tensors = load_file(folder / f"{name}.safetensors") if data["tensors"] else {}
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise ValueError(
                f"{folder}: the observation {name!r} cannot be read ({error}); observe it anew"
            ) from error
        return cls(tensors, data["facts"])


Seen = Mapping[str, Observation]
"""What one subject, or the data, showed so far, by observation."""
