"""Data are known by what their files hold."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import constants

from pruning.data import identity
from pruning.data.identity import data_files, data_fingerprint
from tests.unit.test_data_folder import lay, png


def test_other_contents_of_equal_size_are_other_data(tmp_path: Path):
    root = lay(tmp_path / "p", "train/cat/0.png", "train/dog/1.png", "test/cat/2.png")
    before, cache, words = data_fingerprint(str(root))
    assert (
        words
        == f"3 files, {sum(path.stat().st_size for path in root.rglob('*.png'))} bytes: known by their contents"
    )
    assert set(cache) == {"train/cat/0.png", "train/dog/1.png", "test/cat/2.png"}
    state, held = (root / "train/cat/0.png").stat(), (root / "train/cat/0.png").read_bytes()
    (root / "train/cat/0.png").write_bytes(held[::-1])
    os.utime(root / "train/cat/0.png", ns=(state.st_atime_ns, state.st_mtime_ns + 1_000_000))
    assert (root / "train/cat/0.png").stat().st_size == state.st_size
    after, _, _ = data_fingerprint(str(root), cache)
    assert after != before
    (root / "train/cat/0.png").write_bytes(held)
    assert data_fingerprint(str(root), cache)[0] == before, (
        "where the data lie and when they changed says nothing"
    )
    (root / "train/cat/0.png").rename(root / "train/dog/0.png")
    assert data_fingerprint(str(root))[0] != before


def test_unchanged_files_are_not_read_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    root = lay(tmp_path / "p", "0.png", "1.png")
    first, cache, _ = data_fingerprint(str(root))
    read = []
    plain = identity._sha256
    monkeypatch.setattr(identity, "_sha256", lambda path: read.append(path.name) or plain(path))
    assert data_fingerprint(str(root), cache)[:2] == (first, cache)
    assert read == []
    (root / "1.png").write_bytes(png(5) + b"more")
    data_fingerprint(str(root), cache)
    data_fingerprint(str(root), {"0.png": "broken", "1.png": {"sha256": 3}})
    assert read == ["1.png", "0.png", "1.png"]


def test_large_data_are_known_by_a_part_and_it_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    root = lay(tmp_path / "p", *(f"{i}.png" for i in range(10)))
    monkeypatch.setattr(identity, "READ_WHOLE", 100)
    monkeypatch.setattr(identity, "DRAWN", 4)
    before, cache, words = data_fingerprint(str(root))
    assert words.startswith("10 files, ")
    assert words.endswith(" bytes: known by names, sizes, times and 4 contents")
    assert list(cache) == ["0.png", "2.png", "5.png", "7.png"]
    state = (root / "3.png").stat()
    os.utime(root / "3.png", ns=(state.st_atime_ns, state.st_mtime_ns + 1))
    assert data_fingerprint(str(root), cache)[0] != before


@pytest.mark.parametrize(
    ("count", "words"),
    [(4, "4 bytes"), (0, "0 bytes"), (1500, "1.5 kB"), (57_100_000, "57.1 MB"), (15 * 10**10, "150 GB")],
)
def test_sizes_in_words(count: int, words: str):
    assert identity._size(count) == words


def test_only_data_count(tmp_path: Path):
    root = lay(tmp_path / "p", "a.png", "notes.txt", ".hidden.png", "metadata.jsonl")
    assert data_files(root) == ["a.png", "metadata.jsonl"]
    tables = lay(tmp_path / "t", "train.parquet", "README.md", "state.json", "dataset_info.json")
    assert data_files(tables) == ["dataset_info.json", "state.json", "train.parquet"]
    before = data_fingerprint(str(root))[0]
    lay(root, "more.txt")
    assert data_fingerprint(str(root))[0] == before
    one, _, words = data_fingerprint(str(tables / "train.parquet"))
    assert words == "1 file, 4 bytes: known by their contents"
    assert one != data_fingerprint(str(tables))[0]


def test_data_sets_that_are_not_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    digits, cache, words = data_fingerprint("digits")
    assert (cache, words) == ({}, "known by its name")
    before, _, _ = data_fingerprint("owner/name")
    assert before != digits
    (tmp_path / "datasets--owner--name" / "refs").mkdir(parents=True)
    (tmp_path / "datasets--owner--name" / "refs" / "main").write_text("abc123\n")
    after, _, words = data_fingerprint("owner/name")
    assert after != before
    assert words == "known by its name and commit abc123"


def test_knowing_data_needs_no_torch():
    code = "import sys, pruning.data.identity as i; i.data_fingerprint('.'); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
