"""Which split a table file is, by its name and folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from pruning.data.listing import list_files
from pruning.data.table_files import read_table_file, read_table_folder
from pruning.errors import PruningError


def lay(root: Path, *files: str) -> Path:
    for name in files:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


@pytest.mark.parametrize(
    ("files", "splits"),
    [
        (("train.parquet", "test.parquet"), {"train": ["train.parquet"], "test": ["test.parquet"]}),
        (
            ("data/train-00000-of-00002-a0b1.parquet", "data/train-00001-of-00002-c2d3.parquet"),
            {"train": ["train-00000-of-00002-a0b1.parquet", "train-00001-of-00002-c2d3.parquet"]},
        ),
        (
            ("default/train/0.parquet", "default/validation/0.parquet"),
            {"train": ["0.parquet"], "validation": ["0.parquet"]},
        ),
        (
            ("train-1-of-2.parquet", "train-2-of-2.parquet", "test-0-of-1.parquet"),
            {"train": ["train-1-of-2.parquet", "train-2-of-2.parquet"], "test": ["test-0-of-1.parquet"]},
        ),
        (("part10.parquet", "part9.parquet"), {"train": ["part9.parquet", "part10.parquet"]}),
        (("bullet_trains.PARQUET", "latest.parquet"), {"train": ["bullet_trains.PARQUET", "latest.parquet"]}),
        (
            ("cifar10-train.arrow", "cifar10-test.arrow"),
            {"train": ["cifar10-train.arrow"], "test": ["cifar10-test.arrow"]},
        ),
        (
            ("my Eval set.parquet", "my Train set.parquet"),
            {"train": ["my Train set.parquet"], "test": ["my Eval set.parquet"]},
        ),
    ],
)
def test_splits_by_name_and_folder(tmp_path: Path, files: tuple[str, ...], splits: dict[str, list[str]]):
    found = read_table_folder(tmp_path, list_files(lay(tmp_path, *files, "README.md")))
    assert {split: [path.name for path in paths] for split, paths in found.splits.items()} == splits
    assert found.found.endswith("left out: .md: 1")
    assert found.format in files[0].lower()


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            ("train.parquet", "extra.parquet"),
            "the names of some files say a split, and 'extra.parquet' say none",
        ),
        (
            ("train_test.parquet",),
            r"name 'train_test.parquet' says several splits \(test, train\); rename the file",
        ),
        (
            ("train/test.parquet",),
            r"name 'train/test.parquet' says several splits \(test, train\); rename the file",
        ),
        (
            ("small/train.parquet", "large/train.parquet"),
            r"tables in several folders or formats \('large/\*.parquet', 'small/\*.parquet'\); give a folder with one",
        ),
        (
            ("train-00000-of-00003.parquet", "train-00002-of-00003-a0b1.parquet", "test.parquet"),
            r"the files 'train-\*' are not one whole set of 3; missing: '1'; complete it",
        ),
        (
            ("train/1-of-3.parquet", "train/3-of-3.parquet"),
            r"'train/\*' are not one whole set of 3; missing: '2'",
        ),
        (
            ("train-0-of-1.parquet", "train-0-of-2.parquet", "train-1-of-2.parquet"),
            r"'train-\*' are not one whole set of 1 or 2; missing: none; complete it, and take other sets out",
        ),
        (("a.parquet", "b.arrow"), r"several folders or formats \('\*.arrow', '\*.parquet'\)"),
    ],
)
def test_what_is_ambiguous_is_refused(tmp_path: Path, files: tuple[str, ...], message: str):
    with pytest.raises(PruningError, match=message):
        read_table_folder(tmp_path, list_files(lay(tmp_path, *files)))


def test_a_single_file(tmp_path: Path):
    assert list(read_table_file(tmp_path / "cats_val.parquet").splits) == ["validation"]
    assert list(read_table_file(tmp_path / "station.arrow").splits) == ["train"]
    assert list(read_table_file(tmp_path / "test-00001-of-00003.parquet").splits) == ["test"]
    with pytest.raises(PruningError, match="says several splits"):
        read_table_file(tmp_path / "train-or-test.parquet")
    with pytest.raises(PruningError, match=r"a single file must end in .parquet or .arrow"):
        read_table_file(tmp_path / "x.csv")
