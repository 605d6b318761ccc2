"""Where images come from: the embedded digits, files, folders, the hub."""

from __future__ import annotations

from pathlib import Path

from pruning.data.decode import MODES
from pruning.data.digits import open_digits
from pruning.data.images import ImageData
from pruning.data.prompts import check_text, is_text
from pruning.errors import PruningError
from pruning.settings import DIGITS, NO_DATA


def open_images(
    source: str | Path,
    *,
    split: str = "train",
    channels: int,
    resolution: int,
    image_column: str | None = None,
    label_column: str | None = None,
    caption_column: str | None = None,
) -> ImageData:
    """Open a set of images; pixels are read when they are asked for.

    Args:
        source: ``"digits"`` (embedded), a parquet or arrow file, a folder of such files or of images (laid out as
            `pruning.data.folder` says), a folder from ``save_to_disk``, or a hub id of a data set.
        split: Which split. A single file holds one: the one in its name (``test.parquet``), else ``train``.
        channels: 1 (grey) or 3 (RGB). Palettes, transparency (over white), 16 bits and CMYK are converted.
        resolution: Height and width: the shorter side is resized (bicubic, antialiased), the centre cropped.
        image_column: Column of images; default: the only one.
        label_column: Column of classes; default: ``label`` and the like, where there is one.
        caption_column: Column of texts; default: ``caption``, ``text`` or ``prompt``, where there is one.

    Returns:
        The images of the split.

    Raises:
        PruningError: If source, split or column do not exist, the split is empty, or channels or resolution are
            impossible.
    """
    source, shape = str(source), (channels, resolution, resolution)
    columns = {"image": image_column, "label": label_column, "caption": caption_column}
    if channels not in MODES:
        raise PruningError(f"channels {channels}: images are read as 1 (grey) or 3 (RGB) channels")
    if resolution < 1:
        raise PruningError(f"data {source!r}: resolution {resolution} must be at least 1 pixel")
    if not source.strip():
        raise PruningError("the data source is empty; give digits, a folder, a parquet file or a hub id")
    check_text(source)
    if source == NO_DATA or is_text(source):
        held = "there are none" if source == NO_DATA else "it is text: it holds prompts and no images"
        raise PruningError(
            f"data {source!r}: images are asked for, and {held}; take calibrate.provider=sampling or renoised, for "
            "which recovery and denoising need none, and leave fid and kid out of evaluate.metrics; or give images"
        )
    if source == DIGITS:
        if asked := [column for column in columns.values() if column is not None]:
            raise PruningError(
                f"data 'digits' is no table and has no column {asked[0]!r}; leave the columns out"
            )
        return open_digits(split, shape)
    from pruning.data.tables import open_table  # `datasets` takes a second to import

    return open_table(source, split, shape, columns)
