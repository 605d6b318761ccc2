"""Parquet files, folders of images, and everything that can be wrong with them."""

from __future__ import annotations

import io
from pathlib import Path

import datasets
import numpy as np
import pyarrow
import pytest
import torch
from PIL import Image
from pyarrow import parquet

from pruning.data import ImageData, open_images
from pruning.errors import PruningError
from pruning.models import hub
from tests.shared import SHARED


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Keep what `datasets` writes out of the user's cache."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


def encoded(value: int = 100, size: tuple[int, int] = (4, 4), mode: str = "L") -> bytes:
    stored = io.BytesIO()
    Image.new(mode, size, value).save(stored, "PNG")
    return stored.getvalue()


def table(path: Path, columns: dict[str, list], features: dict | None = None) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    known = {"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b", "c"])}
    features = {name: (features or known).get(name) for name in columns}
    given = None if None in features.values() else datasets.Features(features)
    datasets.Dataset.from_dict(columns, features=given).to_parquet(str(path))
    return str(path)


def cells(*values: int) -> list[dict]:
    return [{"bytes": encoded(value), "path": None} for value in values]


def opened(source: str, **changes) -> ImageData:
    return open_images(source, **{"channels": 1, "resolution": 4, **changes})


def test_a_parquet_file(tmp_path: Path):
    source = table(tmp_path / "train.parquet", {"image": cells(0, 51, 255), "label": [2, 0, 1]})
    data = opened(source)
    assert (len(data), data.num_classes, data.shape) == (3, 3, (1, 4, 4))
    torch.testing.assert_close(data.images([2, 1])[:, 0, 0, 0], torch.tensor([1.0, -0.6]))
    labels = data.labels([0, 2])
    assert labels is not None
    assert labels.tolist() == [2, 1]
    assert data.captions([0]) is None
    with pytest.raises(PruningError, match=r"train.parquet\[train\]: 4 images asked, but the split holds 3"):
        data.check_enough(4)


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("digits.parquet", "train"),
        ("test-00000-of-00001.parquet", "test"),
        ("cats_val.parquet", "validation"),
    ],
)
def test_a_file_holds_the_split_of_its_name(tmp_path: Path, name: str, split: str):
    source = table(tmp_path / name, {"image": cells(1)})
    assert len(opened(source, split=split)) == 1
    asked = "test" if split != "test" else "train"
    with pytest.raises(
        PruningError,
        match=f"has no split '{asked}'; its splits: {split}. Name .* or give a folder that holds a train.parquet",
    ):
        opened(source, split=asked)


def test_a_folder_of_parquet_files_has_their_splits(tmp_path: Path):
    table(tmp_path / "d" / "train.parquet", {"image": cells(1, 2)})
    table(tmp_path / "d" / "test.parquet", {"image": cells(3)})
    assert len(opened(str(tmp_path / "d"))) == 2
    assert len(opened(str(tmp_path / "d"), split="test")) == 1
    with pytest.raises(PruningError, match="has no split 'val'; its splits: train, test"):
        opened(str(tmp_path / "d"), split="val")


def test_a_saved_data_set_and_an_arrow_file(tmp_path: Path):
    made = datasets.Dataset.from_dict(
        {"image": cells(255)}, features=datasets.Features({"image": datasets.Image()})
    )
    made.save_to_disk(str(tmp_path / "saved"))
    arrow = next((tmp_path / "saved").glob("*.arrow"))
    for source in (str(tmp_path / "saved"), str(arrow)):
        assert float(opened(source).images([0]).mean()) == 1.0


def test_a_folder_of_images_with_classes(tmp_path: Path):
    for name, value in (("cat", 0), ("dog", 255)):
        (tmp_path / "pets" / name).mkdir(parents=True)
        (tmp_path / "pets" / name / "one.png").write_bytes(encoded(value))
    data = opened(str(tmp_path / "pets"))
    labels = data.labels([0, 1])
    assert data.num_classes == 2
    assert labels is not None
    assert labels.tolist() == [0, 1]
    assert data.images([0, 1])[:, 0, 0, 0].tolist() == [-1.0, 1.0]


def test_a_folder_of_images_held_out_in_a_folder_of_their_own(tmp_path: Path):
    for split, name, value in (("train", "cat", 0), ("train", "dog", 51), ("test", "dog", 255)):
        (tmp_path / "pets" / split / name).mkdir(parents=True)
        (tmp_path / "pets" / split / name / "one.png").write_bytes(encoded(value))
    train, test = opened(str(tmp_path / "pets")), opened(str(tmp_path / "pets"), split="test")
    assert (len(train), len(test)) == (2, 1)
    assert train.num_classes == test.num_classes == 2
    labels = test.labels([0])
    assert labels is not None
    assert labels.tolist() == [1]
    assert test.images([0]).max() == 1.0


def test_a_folder_of_images_without_held_out_ones_says_where_to_put_them(tmp_path: Path):
    (tmp_path / "pets" / "cat").mkdir(parents=True)
    (tmp_path / "pets" / "cat" / "one.png").write_bytes(encoded(0))
    with pytest.raises(
        PruningError,
        match=r"has no split 'test'; its splits: train\. Name one of them in data.split or data.eval_split, or put the "
        r"images under .*pets/train/<class>/ and those held out under .*pets/test/<class>/",
    ):
        opened(str(tmp_path / "pets"), split="test")


def test_images_without_the_metadata_of_datasets(tmp_path: Path):
    """Other writers store structs of bytes and path, or the bytes alone."""
    source = table(tmp_path / "struct.parquet", {"img": cells(255)}, features={})
    assert float(opened(source).images([0]).mean()) == 1.0
    source = table(tmp_path / "plain.parquet", {"picture": [encoded(255)], "class": [4]}, features={})
    data = opened(source)
    assert float(data.images([0]).mean()) == 1.0
    assert data.num_classes == 5  # plain integers: the largest and one


def test_captions(tmp_path: Path):
    columns = {"image": cells(1, 2), "text": ["a cat", None]}
    data = opened(
        table(
            tmp_path / "one.parquet",
            columns,
            features={"image": datasets.Image(), "text": datasets.Value("string")},
        )
    )
    assert data.captions([1, 0]) == ["", "a cat"]
    columns = {"image": cells(1), "said": [["first", "second"]]}
    source = table(
        tmp_path / "many.parquet",
        columns,
        features={"image": datasets.Image(), "said": datasets.List(datasets.Value("string"))},
    )
    assert opened(source).captions([0]) is None
    assert opened(source, caption_column="said").captions([0]) == ["first"]


def test_mixed_modes_and_sizes_in_one_table(tmp_path: Path):
    palette = Image.new("P", (5, 3), 1)
    palette.putpalette([0, 0, 0, 255, 0, 0])
    images = [palette, Image.new("RGBA", (2, 2), (0, 0, 0, 0)), Image.new("L", (9, 9), 0)]
    stored = []
    for image in images:
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        stored.append({"bytes": buffer.getvalue(), "path": None})
    data = opened(table(tmp_path / "mixed.parquet", {"image": stored}), channels=3)
    found = data.images([0, 1, 2])
    assert found.shape == (3, 3, 4, 4)
    assert found[:, :, 0, 0].tolist() == [[1, -1, -1], [1, 1, 1], [-1, -1, -1]]


@pytest.mark.parametrize("broken", [b"no image", encoded()[:40], None], ids=["text", "cut short", "empty"])
def test_a_broken_image_is_named_by_its_row(tmp_path: Path, broken: bytes | None):
    last = None if broken is None else {"bytes": broken, "path": None}
    source = table(tmp_path / "x.parquet", {"image": [*cells(1, 2), last]})
    data = opened(source)
    assert data.images([0, 1]).shape == (2, 1, 4, 4)
    with pytest.raises(
        PruningError, match=r"x.parquet\[train\]: the image in row 2 \(column 'image'\) cannot be read"
    ):
        data.images([0, 2])


def test_no_image_column(tmp_path: Path):
    source = table(tmp_path / "x.parquet", {"a": [1.5], "b": ["text"]}, features={})
    with pytest.raises(PruningError, match=r"has no image column; its columns: a \(float64\), b \(string\)"):
        opened(source)
    with pytest.raises(PruningError, match="column 'b' holds string, no images"):
        opened(source, image_column="b")


def test_several_image_columns(tmp_path: Path):
    source = table(
        tmp_path / "x.parquet",
        {"left": cells(0), "right": cells(255)},
        features={"left": datasets.Image(), "right": datasets.Image()},
    )
    with pytest.raises(PruningError, match="several image columns: left, right; name one with image_column"):
        opened(source)
    assert float(opened(source, image_column="right").images([0]).mean()) == 1.0


@pytest.mark.parametrize("column", ["image_column", "label_column", "caption_column"])
def test_no_such_column(tmp_path: Path, column: str):
    source = table(tmp_path / "x.parquet", {"image": cells(0), "label": [0]})
    with pytest.raises(
        PruningError, match=rf"has no column 'y' \(asked as {column}\); its columns: image, label"
    ):
        opened(source, **{column: "y"})


def test_columns_of_the_wrong_type(tmp_path: Path):
    source = table(tmp_path / "x.parquet", {"image": cells(0), "label": [0]})
    with pytest.raises(PruningError, match=r"column 'image' holds .*, no labels"):
        opened(source, label_column="image")
    with pytest.raises(PruningError, match="column 'label' holds int64, no captions"):
        opened(source, caption_column="label")


@pytest.mark.parametrize("value", [None, -1])
def test_a_missing_label_is_named_by_its_row(tmp_path: Path, value: int | None):
    source = table(tmp_path / "x.parquet", {"image": cells(0, 0), "label": [0, value]})
    with pytest.raises(PruningError, match=f"row 1 has the label {value!r} in column 'label'"):
        opened(source).labels([0, 1])


@pytest.mark.parametrize(("folder", "split"), [("test", "test"), ("val", "validation")])
def test_folders_of_splits_are_no_classes(tmp_path: Path, folder: str, split: str):
    for name in ("train", folder):
        (tmp_path / "images" / name).mkdir(parents=True)
        (tmp_path / "images" / name / "0.png").write_bytes(encoded())
    for name in ("train", split):
        data = opened(str(tmp_path / "images"), split=name)
        assert (data.labels([0]), data.num_classes) == (None, None)


def test_a_log_holds_no_bars(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    source = table(tmp_path / "x.parquet", {"image": cells(0)})
    capfd.readouterr()
    opened(source)
    assert "Generating" not in capfd.readouterr().err


def test_an_empty_table(tmp_path: Path):
    message = r"x\.parquet': the split asked for, or a file of it, has no rows; add rows or"
    with pytest.raises(PruningError, match=message):
        opened(table(tmp_path / "x.parquet", {"image": [], "label": []}))
    parquet.write_table(pyarrow.table({"image": pyarrow.array([], "binary")}), tmp_path / "x.parquet")
    with pytest.raises(PruningError, match=message):
        opened(str(tmp_path / "x.parquet"))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("/nowhere/at/all", "no such file or folder"),
        ("missing.parquet", "no such file or folder"),
        ("~/nowhere/at/all", "no such file or folder"),
        (" ", "the data source is empty; give digits, a folder"),
    ],
)
def test_no_such_source(source: str, message: str):
    with pytest.raises(PruningError, match=message):
        opened(source)


def test_files_that_are_no_tables(tmp_path: Path):
    (tmp_path / "x.parquet").write_bytes(b"PAR1 but not really")
    with pytest.raises(PruningError, match=r"x.parquet' cannot be read"):
        opened(str(tmp_path / "x.parquet"))
    (tmp_path / "x.csv").write_text("a,b\n")
    with pytest.raises(PruningError, match=r"x.csv': a single file must end in .parquet or .arrow"):
        opened(str(tmp_path / "x.csv"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        PruningError, match=r"empty' holds no images \(found: empty folders: 1\); give a folder of"
    ):
        opened(str(tmp_path / "empty"))


def test_a_hub_that_cannot_be_reached_is_asked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def unreachable(url: str):
        assert url.endswith("/datasets/my-imges/resolve/main/README.md")
        raise ConnectionError("no network")

    (tmp_path / "my-images").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hub, "get_hf_file_metadata", unreachable)
    monkeypatch.setattr(datasets, "load_dataset", lambda *a, **k: pytest.fail("would try for 40 s"))
    with pytest.raises(
        PruningError,
        match=r"data 'my-imges' is no file or folder here \(did you mean 'my-images'\?\), and as a hub id it cannot be "
        "fetched: ConnectionError: no network; check the spelling, or the network ",
    ):
        opened("my-imges")


def test_a_data_set_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    made = datasets.Dataset.from_dict({"image": cells(255)}).cast_column("image", datasets.Image())
    monkeypatch.setattr(hub, "get_hf_file_metadata", lambda url: None)
    monkeypatch.setattr(datasets, "load_dataset", lambda name: datasets.DatasetDict({"train": made}))
    assert float(opened("owner/pictures").images([0]).mean()) == 1.0

    def broken(name: str):
        raise RuntimeError("a shard is missing")

    monkeypatch.setattr(datasets, "load_dataset", broken)
    with pytest.raises(
        PruningError, match="'owner/pictures' cannot be read: RuntimeError: a shard is missing"
    ):
        opened("owner/pictures")
    monkeypatch.setattr(hub, "get_hf_file_metadata", lambda url: pytest.fail("there is a copy"))
    (tmp_path / "cache" / "owner___pictures").mkdir(parents=True)
    with pytest.raises(PruningError, match="a shard is missing"):
        opened("owner/pictures")


@pytest.mark.parametrize(
    ("source", "split", "channels", "resolution", "count"),
    [
        ("fashion_mnist", "test", 1, 32, 10_000),
        ("cifar10_jpeg/test.parquet", "test", 3, 32, 10_000),
        ("pixel_tiles", "train", 3, 32, 4_249),
    ],
)
def test_real_images(source: str, split: str, channels: int, resolution: int, count: int):
    path = SHARED / "data" / source
    if not path.exists():
        pytest.skip(f"real images are not here ({path}); set SINKPRUNE_SHARED to their folder")
    data = open_images(str(path), split=split, channels=channels, resolution=resolution)
    rows = np.linspace(0, count - 1, 40).astype(int).tolist()
    images = data.images(rows)
    assert len(data) == count
    assert images.shape == (40, channels, resolution, resolution)
    assert float(images.min()) >= -1
    assert float(images.max()) <= 1
    assert float(images.std()) > 0.1
