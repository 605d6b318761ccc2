"""The layout of a folder of images: which files are used, as which split and class; torch-free.

The rule, which docs/writing-a-recipe.md says for users:

- Every image at any depth counts, whatever its name; links are followed, hidden names are not.
- If all folders right below the source are named as splits, they are the splits; if none is, all is ``train``.
- In a split all images lie right in it (no classes), or all in folders right below it (each a class). A lone
  folder is a class only if its name is a number.
- In a split with a ``metadata`` file, the rows of that file are the samples, and folders are no classes.
- All else is ambiguous, and refused.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pruning.data.classes import classes_in_words, is_number, number_classes
from pruning.data.listing import Listing, in_words, kinds_of, list_files, named, suffix_of
from pruning.data.splits import SPLITS, begins_as_split, split_named
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
        described: The splits whose samples are the rows of `metadata`.
        metadata: Files of captions and labels, relative to `root`.
        left_out: How many files of what kind are not used.
    """

    root: Path
    splits: Mapping[str, Sequence[str]]
    classes: Mapping[str, int]
    labelled: frozenset[str]
    described: frozenset[str]
    metadata: Sequence[str]
    left_out: Mapping[str, int]

    def class_of(self, image: str) -> int:
        """Return the class of an image of a labelled split."""
        return self.classes[PurePosixPath(image).parent.name]

    def in_words(self) -> str:
        """Return what was found and what was left out, for one line of a log."""
        sizes = ", ".join(f"{split} ({len(images):,})" for split, images in self.splits.items())
        total = sum(map(len, self.splits.values()))
        parts = [f"{total:,} images; splits: {sizes}"]
        if self.classes:
            order = "" if all(map(is_number, self.classes)) else ", in natural order of the names"
            parts.append(f"{len(self.classes):,} classes{order}: {classes_in_words(self.classes)}")
        for split in sorted(self.labelled):
            have = {PurePosixPath(image).parent.name for image in self.splits[split]}
            if missing := [name for name in self.classes if name not in have]:
                parts.append(f"{split} has no image of {named(missing)}")
        if self.metadata:
            parts.append(f"captions and labels by {named(self.metadata)}")
        if self.left_out:
            parts.append(f"left out by kind: {in_words(self.left_out)}")
        return "; ".join(parts)


def read_image_folder(root: Path, listing: Listing | None = None) -> ImageFolder:
    """Return the layout of a folder of images.

    Args:
        root: The folder.
        listing: From `list_files`, if it has been listed already.

    Raises:
        PruningError: If it holds no images or cannot be read, or its layout can be read in more than one way.
    """
    files, skipped = listing or list_files(root)
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
    described = {name for name, prefix in prefixes.items() if _covers(metadata, prefix)}
    plain = {name: prefix for name, prefix in prefixes.items() if name not in described}
    found = {name: _class_folders(root, prefix, splits[name]) for name, prefix in plain.items()}
    names = set[str]().union(*found.values())
    if len(names) == 1 and not all(map(is_number, names)):
        names, found = set(), {}
    return ImageFolder(
        root,
        splits,
        number_classes(names, f"data {str(root)!r}"),
        frozenset(name for name, folders in found.items() if folders),
        frozenset(described),
        metadata,
        left_out,
    )


def _split_prefixes(root: Path, images: Sequence[str]) -> dict[str, str]:
    """Return the splits and how the paths of their images begin.

    Raises:
        PruningError: If a folder may be a split as well as a class.
    """
    tops = list(dict.fromkeys(image.split("/")[0] for image in images if "/" in image))
    splits = {top: split for top in tops if (split := split_named(top))}
    if not splits and not (tops and all(map(begins_as_split, tops))):
        return {"train": ""}
    where = f"data {str(root)!r}"
    if len(splits) < len(tops):
        like = list(splits) or tops
        raise PruningError(
            f"{where}: the folders {named(like)} may be splits or classes"
            + (f", for beside them lie {named([top for top in tops if top not in splits])}" if splits else "")
            + "; if they are splits, let the folders train and test (or validation) be the only ones with images; if "
            f"they are classes, put all classes under {root}/train/"
        )
    if loose := [image for image in images if "/" not in image]:
        raise PruningError(
            f"{where}: {named(loose)} lie beside the splits {named(tops)} and belong to none; move them into one of "
            "the folders, or out"
        )
    prefixes = {split: f"{top}/" for top, split in splits.items()}
    if len(prefixes) < len(splits):
        raise PruningError(
            f"{where}: two of the folders {named(tops)} name the same split; merge or rename them"
        )
    return {split: prefixes[split] for split in SPLITS if split in prefixes}


def _covers(metadata: Sequence[str], prefix: str) -> bool:
    """Tell whether a metadata file lies in a split, or above it."""
    return any(file.startswith(prefix) or "/" not in file for file in metadata)


def _class_folders(root: Path, prefix: str, images: Sequence[str]) -> set[str]:
    """Return the class folders of a split; none where its images lie right in it.

    Raises:
        PruningError: If images lie at several depths, or deeper than in one folder.
    """
    place, paths = f"data {str(root / prefix)!r}", [image[len(prefix) :].split("/") for image in images]
    depths = Counter(len(path) - 1 for path in paths)
    if max(depths) > 1:
        deep = next(path for path in paths if len(path) > 2)
        raise PruningError(
            f"{place}: {'/'.join(deep)!r} lies {len(deep) - 1} folders deep, so its class may be {deep[0]!r} or "
            f"{deep[-2]!r}{_inner_source(root, prefix, deep)}; put the images right into the folders of their classes, "
            "or list them in a metadata.jsonl"
        )
    if len(depths) > 1:
        loose = next(path[0] for path in paths if len(path) == 1)
        raise PruningError(
            f"{place}: {depths[0]:,} images such as {loose!r} lie beside folders of classes and have no class; move "
            "them into a folder, or out"
        )
    return {path[0] for path in paths} if depths[1] else set()


def _inner_source(root: Path, prefix: str, deep: Sequence[str]) -> str:
    """Return a hint where the splits lie one folder too deep, as in unpacked archives."""
    if prefix or split_named(deep[1]) is None:
        return ""
    return f" (for the splits in {deep[0]!r} give data.source={root / deep[0]})"
