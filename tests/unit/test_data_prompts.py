"""Prompts from text files, from folders of them, and from columns of tables without images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import datasets
import pytest
from PIL import Image

from pruning.data import open_images, open_prompts
from pruning.data.identity import data_fingerprint
from pruning.data.prompts import is_text
from pruning.errors import PruningError
from pruning.store import Hashes


def texts(source: Path | str, split: str, column: str | None = None) -> list[str]:
    prompts = open_prompts(str(source), split, column)
    assert prompts.name == f"{source}[{split}]"
    return [prompts.fetch(i) for i in range(len(prompts))]


@pytest.fixture
def lines(tmp_path: Path) -> Callable[..., Path]:
    def write(*found: str, name: str = "prompts.txt") -> Path:
        (tmp_path / name).write_text("\n".join(found), encoding="utf-8")
        return tmp_path / name

    return write


def test_a_line_is_a_prompt_and_every_tenth_is_held_out(lines):
    path = lines("\ufeffthe first ", "", *(f"number {k}" for k in range(2, 25)), "   ")
    every = ["the first", *(f"number {k}" for k in range(2, 25))]
    assert texts(path, "all") == every
    assert texts(path, "test") == ["number 10", "number 20"]
    assert texts(path, "train") == [text for text in every if text not in ("number 10", "number 20")]


def test_only_the_end_of_a_line_ends_a_prompt(tmp_path: Path):
    path = tmp_path / "prompts.txt"
    path.write_bytes("a\u2028b\r\nc\x0bd\x85e\rf\n".encode())
    assert texts(path, "all") == ["a\u2028b", "c\x0bd\x85e", "f"]


def test_a_prompt_that_is_added_moves_no_other(lines):
    before = [texts(lines(*map(str, range(15))), split) for split in ("train", "test")]
    after = [texts(lines(*map(str, range(22))), split) for split in ("train", "test")]
    assert all(longer[: len(shorter)] == shorter for shorter, longer in zip(before, after, strict=True))


def test_of_a_few_prompts_the_last_is_held_out(lines):
    path = lines("a", "b", "c")
    assert (texts(path, "train"), texts(path, "test")) == (["a", "b"], ["c"])


def test_prompts_come_in_turn(lines):
    prompts = open_prompts(str(lines("a", "b", "c")), "train")
    assert [prompts.of_sample(i) for i in range(5)] == ["a", "b", "a", "b", "a"]


def test_a_folder_has_a_file_a_split(lines, tmp_path):
    lines("a", "b", name="train.txt")
    lines("c", name="Test.txt")
    lines("not prompts", name="README.txt")
    assert is_text(str(tmp_path))
    assert texts(tmp_path, "train") == ["a", "b"]
    assert texts(tmp_path, "test") == ["c"]
    with pytest.raises(PruningError, match=r"has no split 'all'; its splits: test, train\. Name one"):
        texts(tmp_path, "all")
    lines("d", name="testing.txt")
    with pytest.raises(
        PruningError, match=r"Test\.txt and testing\.txt are both of the split 'test'; keep one"
    ):
        texts(tmp_path, "test")


def test_text_beside_images_is_not_the_data(lines, tmp_path):
    lines("a", "b", name="train.txt")
    Image.new("L", (4, 4)).save(tmp_path / "a.png")
    assert not is_text(str(tmp_path))
    assert len(open_images(str(tmp_path), channels=1, resolution=4)) == 1


def test_captions_of_a_table_need_no_images(tmp_path):
    rows = {"prompt": ["a cat", "a dog"], "note": ["x", "y"]}
    datasets.Dataset.from_dict(rows).to_parquet(str(tmp_path / "train.parquet"))
    assert texts(tmp_path, "train") == ["a cat", "a dog"]
    assert texts(tmp_path / "train.parquet", "train", "note") == ["x", "y"]
    with pytest.raises(PruningError, match=r"has no column 'words' \(asked as caption_column\)"):
        texts(tmp_path, "train", "words")


def test_a_table_without_captions_is_refused(tmp_path):
    datasets.Dataset.from_dict({"label": [1, 2]}).to_parquet(str(tmp_path / "train.parquet"))
    with pytest.raises(
        PruningError, match=r"has no captions to generate from; name their column in data\.caption_column"
    ):
        texts(tmp_path, "train")


@pytest.mark.parametrize(
    ("content", "split", "message"),
    [
        (b"", "train", r"prompts\.txt' holds no prompt; write one a line"),
        (b"\n \n", "all", "holds no prompt"),
        (
            b"one\n",
            "train",
            "holds one prompt, so that none can be held out; add prompts, or set data.split=all",
        ),
        (b"one\n", "test", "holds one prompt"),
        (b"fine\nd\xe9j\xe0 vu\n", "train", r"line 2 is no UTF-8 \(byte 0xe9\); save the file as UTF-8"),
        (b"a\nb\n", "validation", "has no split 'validation'; its splits: train, test, all"),
    ],
)
def test_bad_files(content: bytes, split: str, message: str, tmp_path: Path):
    (tmp_path / "prompts.txt").write_bytes(content)
    with pytest.raises(PruningError, match=message):
        open_prompts(str(tmp_path / "prompts.txt"), split)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("digits", "the digits have no captions to generate from"),
        ("none", "there are no data to generate from"),
    ],
)
def test_sources_without_prompts(source: str, message: str):
    with pytest.raises(PruningError, match=message):
        open_prompts(source, "train")


def test_columns_are_of_tables(lines):
    with pytest.raises(PruningError, match="is no table and has no column 'caption'; leave the columns out"):
        open_prompts(str(lines("a", "b")), "train", "caption")


def test_images_are_not_found_in_text(lines):
    message = r"images are asked for, and {}; take calibrate\.provider=sampling or renoised"
    for source, held in (
        (str(lines("a", "b")), "it is text: it holds prompts and no images"),
        ("none", "there are none"),
    ):
        with pytest.raises(PruningError, match=message.format(held)):
            open_images(source, channels=3, resolution=8)


def test_a_change_of_a_prompt_is_noticed(lines, tmp_path):
    def known() -> list[str]:
        hashes = Hashes(tmp_path / "hashes.json")
        return [data_fingerprint(str(place), hashes.of)[0] for place in (tmp_path, tmp_path / "train.txt")]

    lines("a", "b", name="train.txt")
    before = known()
    lines("a", "c", name="train.txt")
    assert all(one != two for one, two in zip(before, known(), strict=True))


def test_a_text_file_that_is_not_there_is_no_hub_id(tmp_path: Path):
    (tmp_path / "prompts.txt").write_text("a\nb\n")
    for opened in (
        lambda place: open_prompts(place, "train"),
        lambda place: open_images(place, channels=3, resolution=8),
    ):
        with pytest.raises(
            PruningError, match=r"promts\.txt': there is no such text file \(did you mean '.*prompts"
        ):
            opened(str(tmp_path / "promts.txt"))
