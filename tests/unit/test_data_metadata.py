"""Captions and labels in a metadata file beside images."""

from __future__ import annotations

import csv
import json
import logging
from pathlib import Path

import datasets
import pytest

from pruning.errors import PruningError
from tests.unit.test_data_folder import labels, lay, levels, opened


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


def write(path: Path, *rows: dict) -> None:
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    elif path.suffix == ".parquet":
        datasets.Dataset.from_list(list(rows)).to_parquet(str(path))
    else:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_rows_are_the_samples(tmp_path: Path, kind: str):
    root = lay(tmp_path / "p", "0.png", "train station 1.png", "2.png")
    rows = [
        {"file_name": "2.png", "text": "two, or NA", "label": 7},
        {"file_name": "train station 1.png", "text": "naïve", "label": 3},
        {"file_name": "0.png", "text": "none", "label": 0},
    ]
    write(root / f"metadata.{kind}", *rows)
    data = opened(root)
    assert levels(data) == [2, 1, 0]
    assert data.captions([0, 1, 2]) == ["two, or NA", "naïve", "none"]
    assert labels(data) == [7, 3, 0]
    assert data.class_names == {0: "0", 3: "3", 7: "7"}


def test_a_flat_folder_of_a_hundred_rows_is_used_whole(tmp_path: Path):
    names = [f"train station {i}.png" for i in range(20)] + [f"photo {i}.png" for i in range(80)]
    root = lay(tmp_path / "p", *names)
    write(root / "metadata.jsonl", *({"file_name": name, "text": name} for name in names))
    data = opened(root)
    assert len(data) == 100
    assert levels(data) == list(range(100))
    assert data.captions(range(100)) == names


def test_each_split_has_its_own_file_or_all_have_one(tmp_path: Path):
    root = lay(tmp_path / "p", "train/a/0.png", "train/b/1.png", "test/2.png")
    write(root / "train" / "metadata.jsonl", {"file_name": "b/1.png", "caption": "one"})
    assert levels(opened(root)) == [1]
    assert opened(root).captions([0]) == ["one"]
    assert levels(opened(root, "test")) == [2]
    assert opened(root, "test").captions([0]) is None
    (root / "train" / "metadata.jsonl").unlink()
    write(
        root / "metadata.csv",
        {"file_name": "train/a/0.png", "text": "x"},
        {"file_name": "test/2.png", "text": "y"},
    )
    assert (levels(opened(root)), levels(opened(root, "test"))) == ([0], [2])


def test_an_image_in_no_row_is_said_and_one_in_two_rows_counts_twice(tmp_path: Path, caplog):
    root = lay(tmp_path / "p", "0.png", "1.png")
    write(root / "metadata.jsonl", {"file_name": "0.png", "text": "a"}, {"file_name": "0.png", "text": "b"})
    with caplog.at_level(logging.INFO):
        assert levels(opened(root)) == [0, 0]
    assert "2 rows of train, 1 of its images in none and left out" in caplog.text


def test_a_missing_value_leaves_labels_whole_numbers(tmp_path: Path):
    root = lay(tmp_path / "p", "0.png", "1.png")
    (root / "metadata.csv").write_text("file_name,label\n0.png,4\n1.png,\n")
    data = opened(root)
    assert data.class_names == {4: "4"}
    with pytest.raises(PruningError, match="row 1 has the label None in column 'label'"):
        data.labels([1])


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [{"file_name": "9.png"}],
            r"names '9.png', and there is no such image in .*p; mend or drop the rows",
        ),
        ([{"file_name": "../q/0.png"}], r"names '../q/0.png', and there is no such image"),
        (
            [{"file": "0.png"}],
            r"must name an image in 'file_name', relative to this file, .* its columns: file$",
        ),
        ([{"file_name": "0.png", "image": "x"}], r"have no column 'image'; its columns: file_name, image$"),
    ],
)
def test_rows_that_do_not_fit(tmp_path: Path, rows: list[dict], message: str):
    root = lay(tmp_path / "p", "0.png")
    lay(tmp_path / "q", "0.png")
    write(root / "metadata.jsonl", *rows)
    with pytest.raises(PruningError, match=message):
        opened(root)


def test_files_that_do_not_fit(tmp_path: Path):
    root = lay(tmp_path / "p", "train/0.png", "test/1.png")
    write(root / "metadata.jsonl", {"file_name": "train/0.png", "text": "x"})
    with pytest.raises(PruningError, match=r"'metadata.jsonl' names no image of the split 'test'; add rows"):
        opened(root, "test")
    write(root / "train" / "metadata.jsonl", {"file_name": "0.png", "text": "x"})
    with pytest.raises(
        PruningError, match=r"'metadata.jsonl', 'train/metadata.jsonl' name the same images; keep one"
    ):
        opened(root)
    write(root / "test" / "metadata.jsonl", {"file_name": "1.png", "text": 3})
    with pytest.raises(
        PruningError, match=r"'metadata.jsonl', 'test/metadata.jsonl' have other columns: .*; give"
    ):
        opened(root, "test")
    (root / "metadata.jsonl").write_text("{broken\n")
    with pytest.raises(PruningError, match=r"metadata.jsonl' cannot be read: "):
        opened(root)
