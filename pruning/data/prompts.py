"""Prompts: the lines of a text file, or a column of a data set, whose images are not looked at."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from pruning.data.folder import IMAGE_SUFFIXES
from pruning.data.listing import list_files, suffix_of
from pruning.data.names import split_named
from pruning.data.table_files import is_table
from pruning.errors import PruningError
from pruning.files import expanded
from pruning.models.sources import PREFIX, bundled, near_name
from pruning.settings import DIGITS, NO_DATA

TEXT = ".txt"
ALL = "all"
"""The split of a text file that leaves nothing out."""
HELD_OUT = 10
"""Every so many-th prompt of a single text file is held out. A prompt that is added at the end moves no other."""


@dataclass(frozen=True)
class Prompts:
    """Texts to sample from.

    Attributes:
        name: What they are, for messages and reports, e.g. ``"prompts.txt[test]"``.
        length: How many.
        fetch: Index -> text.
    """

    name: str
    length: int
    fetch: Callable[[int], str]

    def __len__(self) -> int:
        return self.length

    def of_sample(self, index: int) -> str:
        """Return the prompt of a sample: all in turn, and then again from the first."""
        return self.fetch(index % self.length)


def place_of(source: str) -> Path:
    """Return where data lie: ``bundled:``, which must exist, and ``~`` are expanded."""
    return bundled(source) if source.startswith(PREFIX) else expanded(source)


def is_text(source: str) -> bool:
    """Tell whether a source is a text file of prompts, or a folder of them."""
    path = place_of(source)
    return bool(text_files(path)) if path.is_dir() else suffix_of(path.name) == TEXT and path.is_file()


def check_text(source: str) -> None:
    """Raise PruningError if a source is named as a text file that is not there."""
    path = place_of(source)
    if suffix_of(path.name) == TEXT and not path.exists():
        raise PruningError(f"data {source!r}: there is no such text file{near_name(path)}")


def text_files(folder: Path) -> dict[str, Path]:
    """Return the text file of each split of a folder of prompts; none where it holds images or tables.

    Raises:
        PruningError: If two files are of one split.
    """
    named = sorted(
        path
        for path in folder.glob(f"*{TEXT}")
        if path.is_file() and split_named(path.stem) and not path.name.startswith(".")
    )
    if not named or any(
        is_table(file) or suffix_of(file) in IMAGE_SUFFIXES for file in list_files(folder)[0]
    ):
        return {}
    found: dict[str, Path] = {}
    for path in named:
        split = split_named(path.stem) or ""
        if split in found:
            raise PruningError(
                f"data {str(folder)!r}: {found[split].name} and {path.name} are both of the split {split!r}; keep one"
            )
        found[split] = path
    return found


def open_prompts(source: str, split: str, caption_column: str | None = None) -> Prompts:
    """Open the prompts of a split.

    A single text file has the splits ``train``, ``test`` (every tenth prompt, of fewer than ten the last) and ``all``;
    a folder has ``train.txt``, ``test.txt`` and so on. Of a table or an image folder the captions are taken.

    Args:
        source: As for `open_images`, or a text file in UTF-8, a prompt a line, or a folder of these.
        split: Which split.
        caption_column: As for `open_images`.

    Raises:
        PruningError: If there are no prompts, or no such split or column, or they cannot be read.
    """
    check_text(source)
    if is_text(source):
        if caption_column is not None:
            raise PruningError(
                f"data {source!r} is no table and has no column {caption_column!r}; leave the columns out"
            )
        texts = _texts(source, split)
        return Prompts(f"{source}[{split}]", len(texts), texts.__getitem__)
    if source in (DIGITS, NO_DATA):
        held = "the digits have no captions" if source == DIGITS else "there are no data"
        raise PruningError(f"data {source!r}: {held} to generate from; give a text file of prompts")
    from pruning.data.tables import open_captions  # `datasets` takes a second to import

    return open_captions(source, split, caption_column)


def _texts(source: str, split: str) -> list[str]:
    path = place_of(source)
    if path.is_dir():
        return _chosen(
            source, split, {name: lambda file=file: _lines(file) for name, file in text_files(path).items()}
        )
    texts = _lines(path)
    splits = {
        "train": lambda: _parts(source, texts)[0],
        "test": lambda: _parts(source, texts)[1],
        ALL: lambda: texts,
    }
    return _chosen(source, split, splits)


def _chosen(source: str, split: str, splits: Mapping[str, Callable[[], list[str]]]) -> list[str]:
    if split not in splits:
        raise PruningError(
            f"data {source!r} has no split {split!r}; its splits: {', '.join(splits)}. Name one of them in data.split "
            "or data.eval_split"
        )
    return splits[split]()


def _parts(source: str, texts: list[str]) -> tuple[list[str], list[str]]:
    """Return the prompts that are not held out, and those that are."""
    if len(texts) < 2:
        raise PruningError(
            f"data {source!r} holds one prompt, so that none can be held out; add prompts, or set data.split={ALL} "
            f"data.eval_split={ALL}"
        )
    held_out = range(HELD_OUT - 1, len(texts), HELD_OUT) or range(len(texts) - 1, len(texts))
    return [text for place, text in enumerate(texts) if place not in held_out], [texts[i] for i in held_out]


def _lines(path: Path) -> list[str]:
    """Return the lines of a text file that are not blank."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise PruningError(f"data {str(path)!r} cannot be read: {error.strerror}") from error
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise PruningError(
            f"data {str(path)!r}: line {line} is no UTF-8 (byte {raw[error.start]:#04x}); save the file as UTF-8"
        ) from error
    lines = [line.strip() for line in re.split(r"\r\n|\r|\n", text)]  # a prompt may hold other separators
    if not any(lines):
        raise PruningError(f"data {str(path)!r} holds no prompt; write one a line")
    return [line for line in lines if line]
