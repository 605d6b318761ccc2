"""How much memory a process may take: the rule is one, whoever asks."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from pruning import memory
from pruning.memory import spare_bytes, usable_bytes


@pytest.mark.parametrize(
    ("free", "limit", "spare"),
    [
        (1000, None, 800),
        (1000, "max", 800),  # a container without a limit
        (1000, "2000", 800),
        (1000, "800", 400),  # of which 300 are held
        (1000, "200", 0),
    ],
)
def test_most_of_what_the_system_and_the_container_leave(
    free: int, limit: str | None, spare: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if limit is not None:
        (tmp_path / "memory.max").write_text(f"{limit}\n")
    monkeypatch.setattr(memory, "LIMITS", (tmp_path / "memory.max", tmp_path / "none"))
    monkeypatch.setattr(memory, "held_bytes", lambda device: 300)
    monkeypatch.setattr(memory.psutil, "virtual_memory", lambda: SimpleNamespace(available=free))
    assert spare_bytes("cpu") == spare
    assert usable_bytes("cpu") == 300 + spare
