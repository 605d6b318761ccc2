"""The layout of a folder of images: which files are used, as which split and class; torch-free.

The rules are those of docs/writing-a-recipe.md; what they leave open is refused.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pruning.data.listing import Listing, in_words, kinds_of, suffix_of
from pruning.data.names import SPLITS, begins_as_split, is_number, named, number_classes, split_named
from pruning.errors import PruningError

IMAGE_SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".tga", ".jp2", ".j2k", ".avif"),
)
METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")


@dataclass(frozen=True)
class ImageFolder:
    """What a folder of images holds.

    Attributes:
        root: The folder.
        splits: Split -> its images, relative to `root`, in natural order.
        classes: Class folder -> class; empty where folders are no classes.
        labelled: The splits whose images lie in class folders.
        described: Split whose samples are the rows of metadata files -> these files, relative to `root`.
        left_out: How many files of what kind are not used.
    """

    root: Path
    splits: Mapping[str, Sequence[str]]
    classes: Mapping[str, int]
    labelled: frozenset[str]
    described: Mapping[str, Sequence[str]]
    left_out: Mapping[str, int]

    def class_of(self, image: str) -> int:
        """Return the class of an image of a labelled split; an accent written in either of its two ways is the same."""
        return self.classes[unicodedata.normalize("NFC", PurePosixPath(image).parent.name)]

    def in_words(self) -> str:
        """Return what was found and what was left out, for one line of a log."""
        sizes = ", ".join(f"{split} ({len(images):,})" for split, images in self.splits.items())
        parts = [f"{sum(map(len, self.splits.values())):,} images; splits: {sizes}"]
        if self.classes:
            pairs = [f"{name} = {number}" for name, number in self.classes.items()]
            shown = pairs if len(pairs) <= 6 else [*pairs[:3], "…", pairs[-1]]
            order = "" if all(map(is_number, self.classes)) else ", in natural order of the names"
            parts.append(f"{len(pairs):,} classes{order}: {', '.join(shown)}")
        for split in sorted(self.labelled):
            have = {self.class_of(image) for image in self.splits[split]}
            if missing := [name for name, number in self.classes.items() if number not in have]:
                parts.append(f"{split} has no image of {named(missing)}")
        if metadata := sorted({file for files in self.described.values() for file in files}):
            parts.append(f"captions and labels by {named(metadata)}")
        if self.left_out:
            parts.append(f"left out by kind: {in_words(self.left_out)}")
        return "; ".join(parts)


def read_image_folder(root: Path, listing: Listing) -> ImageFolder:
    """Return the layout of the folder `root`, whose files are `listing`.

    Raises:
        PruningError: If it holds no images, or its layout can be read in more than one way.
    """
    files, skipped = listing
    images = [file for file in files if suffix_of(file) in IMAGE_SUFFIXES]
    metadata = [file for file in files if PurePosixPath(file).name.casefold() in METADATA]
    left_out = skipped + kinds_of(sorted({*files}.difference(images, metadata)))
    if not images:
        raise PruningError(
            f"data {str(root)!r} holds no images (found: {in_words(left_out) or 'nothing'}); give a folder of images "
            "or of parquet files; archives are to be unpacked"
        )
    prefixes = _split_prefixes(root, images)
    splits = {name: [i for i in images if i.startswith(prefix)] for name, prefix in prefixes.items()}
    by_split = {
        name: [file for file in metadata if file.startswith(prefix) or "/" not in file]
        for name, prefix in prefixes.items()
    }
    described = {name: found for name, found in by_split.items() if found}
    classes = {
        name: _class_folders(root, prefix, splits[name])
        for name, prefix in prefixes.items()
        if name not in described
    }
    names = set[str]().union(*classes.values())
    if len(names) == 1 and not all(map(is_number, names)):
        names, classes = set(), {}
    numbers = number_classes(names, f"data {str(root)!r}")
    labelled = frozenset(name for name, folders in classes.items() if folders)
    return ImageFolder(root, splits, numbers, labelled, described, left_out)


def _split_prefixes(root: Path, images: Sequence[str]) -> dict[str, str]:
    """Return the splits and how the paths of their images begin; what may be a split or a class is a PruningError."""
    tops = list(dict.fromkeys(image.split("/")[0] for image in images if "/" in image))
    splits = {top: split for top in tops if (split := split_named(top))}
    if not splits and not (tops and all(map(begins_as_split, tops))):
        return {"train": ""}
    others = [name for name in dict.fromkeys(image.split("/")[0] for image in images) if name not in splits]
    if others or len({*splits.values()}) < len(splits):
        beside = f", for beside them lie {named(others)}" if splits and others else ""
        raise PruningError(
            f"data {str(root)!r}: the folders {named(list(splits) or tops)} may be splits or classes{beside}; if they "
            "are splits, let there be one train and one test (or validation) that hold all images; if they are "
            f"classes, put all classes under {root}/train/"
        )
    prefixes = {split: f"{top}/" for top, split in splits.items()}
    return {split: prefixes[split] for split in SPLITS if split in prefixes}


def _class_folders(root: Path, prefix: str, images: Sequence[str]) -> set[str]:
    """Return the class folders of a split; none where its images lie right in it.

    Images at several depths, or deeper than in one folder, are a PruningError.
    """
    paths = [image[len(prefix) :].split("/") for image in images]
    shallow, deep = min(paths, key=len), max(paths, key=len)
    if len(deep) > 2 or len(shallow) < len(deep):
        beside = f" beside {'/'.join(shallow)!r}" if len(shallow) < len(deep) else ""
        split = "" if prefix or len(deep) < 3 or split_named(deep[1]) is None else f"{root / deep[0]}"
        raise PruningError(
            f"data {str(root / prefix)!r}: {'/'.join(deep)!r} lies {len(deep) - 1} folders deep{beside}, so which of "
            "them are classes is not known; put all images right into the folders of their classes, or list them in a "
            "metadata.jsonl" + (f"; for the splits in {deep[0]!r} give data.source={split}" if split else "")
        )
    return {unicodedata.normalize("NFC", path[0]) for path in paths if len(path) > 1}
