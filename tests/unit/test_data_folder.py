"""Folders of images as people lay them out: what is used, as which split and class, and what is refused."""

from __future__ import annotations

import io
import logging
from pathlib import Path

import datasets
import pytest
from PIL import Image

from pruning.data import ImageData, open_images
from pruning.data.folder import read_image_folder
from pruning.data.listing import list_files
from pruning.errors import PruningError


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


def png(value: int = 100) -> bytes:
    stored = io.BytesIO()
    Image.new("L", (4, 4), value).save(stored, "PNG")
    return stored.getvalue()


def lay(root: Path, *files: str) -> Path:
    """Write files: images are of grey levels 0, 1, 2, … in the order given, others hold a word."""
    for place, name in enumerate(files):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        image = name.lower().endswith((".png", ".jpg", ".gif", ".webp"))
        (root / name).write_bytes(png(place) if image else b"word")
    return root


def opened(root: Path, split: str = "train", **changes) -> ImageData:
    return open_images(str(root), split=split, channels=1, resolution=4, **changes)


def levels(data: ImageData) -> list[int]:
    """Return the grey level of every image, by which `lay` numbers them."""
    return [round((float(data.images([i]).mean()) + 1) * 127.5) for i in range(len(data))]


def labels(data: ImageData) -> list[int] | None:
    found = data.labels(range(len(data)))
    return None if found is None else found.tolist()


def test_a_flat_folder_is_used_whole_whatever_the_names_of_its_files(tmp_path: Path):
    names = [f"train station {i}.png" for i in range(20)] + [f"test {i}.png" for i in range(5)]
    root = lay(tmp_path / "photos", *names, *(f"photo {i}.png" for i in range(75)))
    data = opened(root)
    assert len(data) == 100
    assert sorted(levels(data)) == list(range(100))
    assert labels(data) is None


def test_files_come_in_natural_order(tmp_path: Path):
    data = opened(lay(tmp_path / "p", "b10.png", "b9.png", "a.png", "C.png"))
    assert levels(data) == [2, 1, 0, 3]


@pytest.mark.parametrize(
    "folders", [("bus", "car", "bullet_train", "fire truck"), ("train station", "bus"), ("trains", "tests")]
)
def test_class_folders_with_a_split_among_their_words_are_classes(tmp_path: Path, folders: tuple[str, ...]):
    root = lay(tmp_path / "p", *(f"{name}/{i}.png" for name in folders for i in range(3)))
    data = opened(root)
    assert len(data) == 3 * len(folders)
    assert labels(data) == [k for k in range(len(folders)) for _ in range(3)]
    assert list((data.class_names or {}).values()) == sorted(folders, key=str.casefold)


def test_a_class_called_train_keeps_its_held_out_images_held_out(tmp_path: Path):
    root = lay(tmp_path / "p", "train/train/0.png", "train/bus/1.png", "test/train/2.png", "test/bus/3.png")
    train, test = opened(root), opened(root, "test")
    assert (levels(train), labels(train)) == ([1, 0], [0, 1])
    assert (levels(test), labels(test)) == ([3, 2], [0, 1])
    assert train.class_names == test.class_names == {0: "bus", 1: "train"}


@pytest.mark.parametrize(
    "splits", [("train", "test"), ("Train", "TEST"), ("training", "val"), ("train", "validation", "eval")]
)
def test_split_folders_in_their_usual_spellings(tmp_path: Path, splits: tuple[str, ...]):
    root = lay(tmp_path / "p", *(f"{name}/0.png" for name in splits))
    known = {"train": "train", "training": "train", "val": "validation", "eval": "test"}
    for place, name in enumerate(splits):
        split = known.get(name.lower(), name.lower())
        assert levels(opened(root, split)) == [place]
    with pytest.raises(PruningError, match="has no split 'dev'; its splits: train, "):
        opened(root, "dev")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            ("train/0.png", "bus/0.png", "car/0.png"),
            r"folders 'train' may be splits or classes, for beside them lie 'bus', 'car'; if they are splits, let "
            r"there be one train and one test \(or validation\) that hold all images; .* classes under .*/train/",
        ),
        (
            ("train_images/0.png", "test_images/0.png"),
            "'test_images', 'train_images' may be splits or classes; if they are splits",
        ),
        (
            ("train/0.png", "test/0.png", "stray.png"),
            "'test', 'train' may be splits or classes, for beside them lie 'stray.png'; if they are splits",
        ),
        (
            ("val/0.png", "validation/0.png"),
            "the folders 'val', 'validation' may be .* one test .or validation",
        ),
        (
            ("train/0.png", "Train/0.png"),
            "the folders 'Train', 'train' may be .* let there be one train and one",
        ),
        (
            ("train/cat/0.png", "train/dog/0.png", "train/loose.png"),
            r"train': 'cat/0.png' lies 1 folders deep beside 'loose.png', so which of them are classes is not known",
        ),
        (
            ("train/pets/cat/0.png", "train/pets/dog/0.png"),
            r"train': 'pets/cat/0.png' lies 2 folders deep, so which of them are classes is not known; put all images "
            "right into the folders of their classes",
        ),
        (
            ("archive/train/cat/0.png", "archive/test/cat/0.png"),
            r"; for the splits in 'archive' give data.source=.*/archive$",
        ),
        (("Cat/0.png", "cat/0.png"), "the class folders 'Cat', 'cat' have names that differ in capitals"),
        (
            ("7/0.png", "07/0.png", "1/0.png"),
            "the class folders '07', '7' have names that differ in .* leading zeros",
        ),
        (
            ("1/0.png", "2/0.png", "cat/0.png"),
            "the class folders 'cat' are no numbers from 0 to 999999999, while others are, so which classes these are "
            "is not known; name all of them by numbers, or none",
        ),
        (("-1/0.png", "0/0.png", "1/0.png"), "the class folders '-1' are no numbers"),
        (
            ("train/0/0.png", "train/1/0.png", "test/0/0.png", "test/one/0.png"),
            "folders 'one' are no numbers",
        ),
        (("3/0.png", "20260101120000/0.png"), "folders '20260101120000' are no numbers"),
        (("readme.txt", "pictures.zip"), r"holds no images \(found: \.txt: 1, \.zip: 1\)"),
        ((), r"holds no images \(found: empty folders: 1\)"),
        (("a.png", "train.parquet"), "holds images as well as tables"),
    ],
)
def test_layouts_that_can_be_read_in_several_ways_are_refused(tmp_path: Path, files: tuple, message: str):
    (tmp_path / "p").mkdir()
    with pytest.raises(PruningError, match=message):
        opened(lay(tmp_path / "p", *files))


def test_numbers_are_their_own_classes(tmp_path: Path):
    data = opened(lay(tmp_path / "p", *(f"{k}/0.png" for k in range(12))))
    assert levels(data) == labels(data) == list(range(12))
    some = opened(lay(tmp_path / "q", "7/0.png", "5/0.png", "3/0.png"))
    assert (levels(some), labels(some)) == ([2, 1, 0], [3, 5, 7])
    assert (some.class_names, some.num_classes) == ({3: "3", 5: "5", 7: "7"}, 8)
    one = opened(lay(tmp_path / "r", "007/0.png"))
    assert labels(one) == [7]


def test_long_numbers_are_names(tmp_path: Path):
    data = opened(lay(tmp_path / "p", "20260102000000000000/0.png", "20260101000000000000/1.png"))
    assert labels(data) == [0, 1]
    assert data.class_names == {0: "20260101000000000000", 1: "20260102000000000000"}


def test_an_accent_in_either_spelling_is_the_same_class(tmp_path: Path):
    composed, apart = "caf\u00e9", "cafe\u0301"
    root = lay(
        tmp_path / "p", f"train/{composed}/0.png", "train/tea/1.png", f"test/{apart}/2.png", "test/tea/3.png"
    )
    for split in ("train", "test"):
        data = opened(root, split)
        assert labels(data) == [0, 1]
        assert data.class_names == {0: composed, 1: "tea"}
    assert labels(opened(lay(tmp_path / "q", f"{composed}/0.png", f"{apart}/1.png", "tea/2.png"))) == [
        0,
        0,
        1,
    ]


def test_names_are_counted_in_natural_order_which_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.INFO):
        data = opened(lay(tmp_path / "p", "class10/0.png", "class2/0.png", "b3/0.png"))
    assert data.class_names == {0: "b3", 1: "class2", 2: "class10"}
    assert "3 classes, in natural order of the names: b3 = 0, class2 = 1, class10 = 2" in caplog.text


def test_splits_agree_on_classes_that_one_of_them_lacks(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    root = lay(tmp_path / "p", "train/cat/0.png", "train/dog/1.png", "train/fox/2.png", "test/fox/3.png")
    with caplog.at_level(logging.INFO):
        test = opened(root, "test")
    assert labels(test) == [2]
    assert test.num_classes == 3
    assert "test has no image of 'cat', 'dog'" in caplog.text
    (root / "test" / "owl").mkdir()
    (root / "test" / "owl" / "4.png").write_bytes(png(4))
    assert opened(root).num_classes == 4


def test_a_lone_folder_is_no_class_and_a_flat_split_has_none(tmp_path: Path):
    assert labels(opened(lay(tmp_path / "p", "images/0.png", "images/1.png"))) is None
    root = lay(tmp_path / "q", "train/cat/0.png", "train/dog/1.png", "test/2.png")
    assert labels(opened(root)) == [0, 1]
    assert labels(opened(root, "test")) is None


def test_all_kinds_of_images_and_links_are_used_and_the_rest_is_said(tmp_path: Path, caplog):
    root = lay(
        tmp_path / "p", "0.PNG", "1.gif", "2.WebP", ".3.png", "__MACOSX/._0.PNG", "Thumbs.db", "notes.txt"
    )
    other = lay(tmp_path / "elsewhere", "0.jpg")
    (root / "link.jpg").symlink_to(other / "0.jpg")
    (root / "broken.png").symlink_to(tmp_path / "nowhere.png")
    (root / "empty").mkdir()
    with caplog.at_level(logging.INFO):
        assert len(opened(root)) == 4
    assert "4 images; splits: train (4)" in caplog.text
    for part in (".db: 1", ".txt: 1", "hidden: 2", "broken links: 1", "empty folders: 1"):
        assert part in caplog.text


def test_linked_folders_are_followed_and_loops_are_not(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    root = lay(tmp_path / "p", "train/cat/0.png")
    dogs = lay(tmp_path / "dogs", "notes.txt", "1.png")
    (root / "train" / "dog").symlink_to(dogs)
    (root / "train" / "cat" / "back").symlink_to(root)
    (root / "test").symlink_to(root / "train" / "dog")
    with caplog.at_level(logging.INFO):
        data = opened(root)
    assert (levels(data), labels(data)) == ([0, 1], [0, 1])
    assert levels(opened(root, "test")) == [1]
    assert "links to a folder above: 1" in caplog.text


@pytest.mark.parametrize("name", ["[v2]", "set [a-z]*", "what?"])
def test_paths_with_glob_characters(tmp_path: Path, name: str):
    root = lay(tmp_path / name / "p", "train/cat/0.png", "train/dog [old]/1.png")
    assert levels(opened(root)) == [0, 1]
    made = datasets.Dataset.from_dict({"image": [{"bytes": png(9), "path": None}]})
    made = made.cast_column("image", datasets.Image())
    made.to_parquet(str(tmp_path / name / "tables" / "test.parquet"))
    made.save_to_disk(str(tmp_path / name / "saved"))
    arrow = next((tmp_path / name / "saved").glob("*.arrow"))
    for source, split in (
        (tmp_path / name / "tables", "test"),
        (tmp_path / name / "tables" / "test.parquet", "test"),
        (tmp_path / name / "saved", "train"),
        (arrow, "train"),
    ):
        assert levels(opened(source, split)) == [9]


def test_many_classes_are_said_briefly(tmp_path: Path):
    root = lay(tmp_path / "p", *(f"{k}/0.png" for k in range(9)))
    found = read_image_folder(root, list_files(root)).in_words()
    assert found == "9 images; splits: train (9); 9 classes: 0 = 0, 1 = 1, 2 = 2, …, 8 = 8"


def test_a_folder_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    root = lay(tmp_path / "p", "0.png")

    def refuse(path: object) -> object:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("os.scandir", refuse)
    with pytest.raises(
        PruningError, match=r"data folder '.*p' cannot be read: Permission denied; give yourself"
    ):
        opened(root)
