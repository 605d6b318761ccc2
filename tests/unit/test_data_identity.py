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
from pruning.store import Hashes, file_hash, folder_bytes
from tests.unit.test_data_folder import lay, png


def fingerprint(source: Path | str, read: list[str] | None = None) -> str:
    return known(source, read)[0]


def known(source: Path | str, read: list[str] | None = None) -> tuple[str, str]:
    """Return hash and words; the names of the files that were read go into `read`."""

    def hash_of(path: Path) -> str:
        if read is not None:
            read.append(path.name)
        return file_hash(path)

    return data_fingerprint(str(source), hash_of)


def test_other_contents_of_equal_size_are_other_data(tmp_path: Path):
    root = lay(tmp_path / "p", "train/cat/0.png", "train/dog/1.png", "test/cat/2.png")
    read: list[str] = []
    before, words = known(root, read)
    assert words == f"3 files, {folder_bytes(root)} B, known by their contents (a change is noticed)"
    assert read == ["2.png", "0.png", "1.png"]
    held = (root / "train/cat/0.png").read_bytes()
    (root / "train/cat/0.png").write_bytes(held[::-1])
    assert fingerprint(root) != before
    (root / "train/cat/0.png").write_bytes(held)
    assert fingerprint(root) == before, "where the data lie and when they changed says nothing"
    (root / "train/cat/0.png").rename(root / "train/dog/0.png")
    assert fingerprint(root) != before


def test_unchanged_files_are_not_read_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    root = lay(tmp_path / "p", "0.png", "1.png")
    read: list[str] = []
    monkeypatch.setattr(
        "pruning.store.hashes.file_hash", lambda path: read.append(path.name) or file_hash(path)
    )
    hashes = Hashes(tmp_path / "hashes.json")
    first = data_fingerprint(str(root), hashes.of)
    hashes.save()
    assert read == ["0.png", "1.png"]
    assert data_fingerprint(str(root), Hashes(tmp_path / "hashes.json").of) == first
    assert read == ["0.png", "1.png"]
    (root / "1.png").write_bytes(png(5) + b"more")
    assert data_fingerprint(str(root), hashes.of) != first
    assert read == ["0.png", "1.png", "1.png"]


def test_large_data_are_known_by_a_part_and_it_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    root = lay(tmp_path / "p", *(f"{i}.png" for i in range(10)))
    monkeypatch.setattr(identity, "READ_WHOLE", 100)
    monkeypatch.setattr(identity, "DRAWN", 4)
    read: list[str] = []
    before, words = known(root, read)
    assert words == f"10 files, {folder_bytes(root)} B, known by names, sizes, times and the contents of 4"
    assert read == ["0.png", "2.png", "5.png", "7.png"]
    state = (root / "3.png").stat()
    os.utime(root / "3.png", ns=(state.st_atime_ns, state.st_mtime_ns + 1))
    assert fingerprint(root) != before


def test_only_data_count(tmp_path: Path):
    root = lay(tmp_path / "p", "a.png", "notes.txt", ".hidden.png", "metadata.jsonl")
    assert data_files(root) == ["a.png", "metadata.jsonl"]
    tables = lay(tmp_path / "t", "train.parquet", "README.md", "state.json", "dataset_info.json")
    assert data_files(tables) == ["dataset_info.json", "state.json", "train.parquet"]
    before = fingerprint(root)
    lay(root, "more.txt")
    assert fingerprint(root) == before
    one, words = known(tables / "train.parquet")
    assert words == "1 file, 4 B, known by their contents (a change is noticed)"
    assert one != fingerprint(tables)


def test_data_sets_that_are_not_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    digits, words = known("digits")
    assert words == "known by its name"
    before = fingerprint("owner/name")
    assert before != digits
    (tmp_path / "datasets--owner--name" / "refs").mkdir(parents=True)
    (tmp_path / "datasets--owner--name" / "refs" / "main").write_text("abc123\n")
    after, words = known("owner/name")
    assert after != before
    assert words == "known by its name and commit abc123"


def test_knowing_data_needs_no_torch():
    code = "import sys, pruning.data.identity as i; i.data_fingerprint('digits', str); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
