"""`record`: a user's own pipeline runs, and what its denoisers were asked is kept."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from pruning.errors import PruningError, shown
from pruning.files import check_writable, expanded, remove, size, write_errors, write_json, written_whole
from pruning.models.pipelines import evaluating, modules_of, schedulers_of
from pruning.models.stored import weights_digest
from pruning.recording.axes import Axes
from pruning.recording.calls import NOT_NOISED, RecordedCalls
from pruning.recording.cutting import ends_of_run, points_of, rows_of_run
from pruning.recording.decoding import DECODING, learn_decoding
from pruning.recording.format import HEAD, Denoiser, Head, Row, part_paths, read_parts
from pruning.recording.learning import Lesson, learn
from pruning.recording.rehearsing import rehearsal
from pruning.recording.runs import Runs
from pruning.recording.templates import Branch, branch_of, template_branches
from pruning.recording.tensors import Tensors, content_key, on_cpu
from pruning.recording.watching import Answer, SamplingStep, Watch
from pruning.settings.section import fits
from pruning.store.locks import locked
from pruning.store.result import changes_in_words

logger = logging.getLogger(__name__)

PART_SAMPLES, PART_BYTES = 16, 2**28
"""A part of a recording ends after so many samples, or new bytes."""

LOCK = ".lock"
"""File that says which process records."""

Progress = Callable[[int, int], None]
"""Is told how many samples are done, and how many there are."""


def record(
    pipeline: Any,
    inputs: Iterable[Mapping[str, Any]],
    folder: str | Path,
    *,
    call: Mapping[str, Any] | None = None,
    seed: int = 0,
    points: int | None = 8,
    noised_anew: bool = False,
    for_images: bool = False,
    progress: Progress | None = None,
) -> RecordedCalls:
    """Run a pipeline once for each of `inputs` and keep what its denoisers were asked.

    Before, one run of one sample and one of two, in which the denoiser runs once and then repeats itself, learn what
    the batch is, and some rehearsals without it prove what its answers mean (`pruning.recording.oracle`); then it is
    said how much will be written. A recording that was stopped in any way goes on where it was, if it is asked for
    again with the same arguments.

    Args:
        pipeline: Any DiffusionPipeline, on whatever device; it is left as it was.
        inputs: What each sample is asked with: ``{"prompt": "a dog"}``, ``{"class_labels": [3]}``, ``{}``.
        folder: Where to write; made.
        call: What all samples share, by the names of the pipeline's call: steps, guidance, size, negative prompt.
        seed: Sample i draws from its own generator, seeded by (seed, i).
        points: Sampling steps that are kept of a sample, one in each of so many equal parts of the run; None: all. Not
            read for images.
        noised_anew: Refuse at once a pipeline whose latents cannot be noised anew.
        for_images: The latents will be made of images (`noised_images`): no denoiser runs but in learning, no latents
            and ends are kept, and it is learned how images become latents; a pipeline of which that is not known is
            refused. Where the later steps of a sample follow from its first one (`pruning.recording.templates`), that
            is all of it that is run and kept, and of guidance the branch with the prompt or class alone.
        progress: Told after each sample.

    Returns:
        The recording, opened.

    Raises:
        PruningError: For a pipeline that cannot be recorded or fails, arguments that it does not take, a folder that
            holds another recording, is in use or cannot be written, or no room on the disk.
    """
    if not isinstance(folder, (str, Path)) or not str(folder).strip():
        raise PruningError(f"folder is {shown(folder)}; name a folder")
    folder = expanded(folder)
    runs = Runs(pipeline, inputs, {} if call is None else call, seed)
    if points is not None and (not fits(points, int) or points < 1):
        raise PruningError(f"points is {shown(points)}; it must be at least 1, or None for every step")
    points = None if for_images else points
    identity = {**_identity(runs, points), "for_images": for_images}
    if _begun(folder, identity) is not None:
        found = RecordedCalls.open(folder, whole=False)
        if found.recorded == found.samples:
            return found
    with _held(folder), evaluating(*modules_of(pipeline).values()):
        head = _begun(folder, identity)
        lesson = learn(runs) if head is None or for_images else None
        if head is None:
            assert lesson is not None
            head = _begin(runs, folder, identity, lesson, points, noised_anew)
        answer = None if lesson is None or not for_images else (lambda: rehearsal(lesson.learned))
        _write(runs, folder, _Kept(head, points), answer, progress)
    return RecordedCalls.open(folder)


def _begun(folder: Path, identity: Mapping[str, Any]) -> Head | None:
    """Return the head of the recording in a folder, None if none was begun; another one is a PruningError."""
    head = Head.read(folder)
    if head is not None and (words := changes_in_words(dict(head.identity), identity)):
        raise PruningError(
            f"{folder} holds another recording: {words}; choose another folder, or delete this one"
        )
    if head is None and (left := sorted(folder.glob("rows-*.json"))):
        raise PruningError(
            f"{folder} holds a part of a recording, {left[0].name}, whose {HEAD} is gone; choose another folder, or "
            "delete this one"
        )
    return head


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    """Hold the folder for this process, made if need be; one that stays empty goes again."""
    lock, made = folder / LOCK, [place for place in (folder, *folder.parents) if not place.exists()]
    check_writable("the recording", folder, 0)
    try:
        with locked(lock, str(folder), f"wait for it, or delete {lock} if that process is gone"):
            for left in folder.glob(".*.tmp"):  # of a process that was killed
                remove(left)
            yield
    finally:
        with suppress(OSError):
            for place in made:
                place.rmdir()


def _begin(
    runs: Runs,
    folder: Path,
    identity: Mapping[str, Any],
    lesson: Lesson,
    points: int | None,
    noised_anew: bool,
) -> Head:
    """Write what will be recorded, if there is room for it, and return it."""
    for_images = identity["for_images"]
    if noised_anew or for_images:
        _check_noising(runs, lesson)
    decoding = learn_decoding(runs, lesson.learned) if for_images else None
    if for_images and decoding is None:
        raise PruningError(
            f"{runs.name}: how images become its latents is not known: between the last step of its scheduler and "
            "its autoencoder they are not only moved and scaled; train and measure on what it generates itself"
        )
    count = len(runs.inputs)
    branches = _branches(lesson, count) if for_images else None
    head = Head(identity, count, lesson.steps, lesson.denoisers, lesson.target, branches)
    head = replace(head, bytes=_expected_bytes(lesson, _Kept(head, points)))
    logger.info("recording of %d samples: about %s on disk", count, size(head.bytes))
    check_writable("the recording", folder, head.bytes)
    with write_errors("the recording", folder, "Nothing was recorded"):
        if decoding is not None:
            with written_whole(folder / DECODING) as temporary:
                decoding.save(temporary)
        write_json(folder / HEAD, head.to_json())
    return head


def _check_noising(runs: Runs, lesson: Lesson) -> None:
    """Raise PruningError unless the latents of every row can be made anew."""
    if lesson.target is None:
        raise PruningError(f"{runs.name}: {NOT_NOISED}")
    steps = lesson.learned.steps
    rows = rows_of_run(0, steps, set(range(len(steps))), axes_of(lesson.denoisers), Tensors())
    if strange := next((row for row in rows if not row.places), None):
        raise PruningError(
            f"{runs.name}: {strange.name}: its latents are not those that the scheduler begins with; ask for one "
            "sample in each of inputs (num_images_per_prompt 1), or use the recorded points"
        )


def _identity(runs: Runs, points: int | None) -> dict[str, Any]:
    """Return in JSON types what tells this recording from others."""
    found = {
        "pipeline": runs.name,
        "weights": {name: weights_digest(part) for name, part in modules_of(runs.pipeline).items()},
        "schedulers": {
            name: {
                "class": type(part).__name__,
                **{k: v for k, v in dict(part.config).items() if k[0] != "_"},
            }
            for name, part in schedulers_of(runs.pipeline).items()
        },
        "inputs": hashlib.sha256(json.dumps([_said(one) for one in runs.inputs]).encode()).hexdigest(),
        "call": _said({name: value for name, value in runs.shared.items() if name != "output_type"}),
        "seed": runs.seed,
        "points": points,
    }
    return json.loads(json.dumps(found, default=str))


def _said(value: Any) -> Any:
    """Return an argument of a pipeline as JSON types; images, tensors and functions by their content."""
    if isinstance(value, Mapping):
        return {str(key): _said(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_said(entry) for entry in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    name, form = (
        type(value).__name__,
        [str(getattr(value, key, "")) for key in ("dtype", "shape", "mode", "size")],
    )
    if isinstance(value, Tensor):
        return f"{name} {content_key(on_cpu(value))}"
    if code := getattr(value, "__code__", None):
        return f"{name} {value.__qualname__} {hashlib.sha256(code.co_code).hexdigest()}"
    if not hasattr(value, "tobytes"):
        return name
    return f"{name} {hashlib.sha256(value.tobytes() + str(form).encode()).hexdigest()}"


def _branches(lesson: Lesson, samples: int) -> list[Branch] | None:
    """Return the branches that are kept for images, where all steps of a sample follow from its first; else None."""
    if samples > 1 and lesson.other is lesson.learned.steps:
        return None  # it was not shown that samples can be asked for alike
    inputs, tensors = axes_of(lesson.denoisers), Tensors()
    rows, others = (
        list(rows_of_run(sample, steps, set(range(len(steps))), inputs, tensors, with_latents=False))
        for sample, steps in enumerate((lesson.learned.steps, lesson.other))
    )
    return template_branches(rows, others)


@dataclass(frozen=True)
class _Kept:
    """What is kept of the samples.

    Attributes:
        head: What the recording is.
        points: Sampling steps; None: all.
    """

    head: Head
    points: int | None

    def is_whole(self, sample: int) -> bool:
        """Tell whether a sample is run to its end; else its later steps are made of its first one."""
        return self.head.branches is None or not sample

    def positions(self, sample: int) -> set[int]:
        """Return the positions of a sample's steps whose calls are kept."""
        return points_of(sample, self.head.steps, self.points) if self.is_whole(sample) else {0}

    def rows(self, sample: int, steps: Sequence[SamplingStep], tensors: Tensors) -> list[Row]:
        """Return the rows of a sample, of a run of which at least the first steps are there."""
        inputs, branches = axes_of(self.head.denoisers), self.head.branches
        chosen, blank = self.positions(sample), bool(self.head.identity["for_images"])
        rows = rows_of_run(sample, steps, chosen, inputs, tensors, with_latents=not blank)
        return [row for row in rows if branches is None or branch_of(row) in branches]


def axes_of(denoisers: Mapping[str, Denoiser]) -> dict[str, Axes]:
    """Return the batch axes of the arguments of each denoiser."""
    return {name: denoiser.inputs for name, denoiser in denoisers.items()}


def _expected_bytes(lesson: Lesson, kept: _Kept) -> int:
    """Return about what a recording takes: the first sample, and for each other what it has not in common with it."""
    tensors, known, sizes = Tensors(), 0, list[int]()
    for sample, steps in enumerate((lesson.learned.steps, lesson.other)):
        rows = kept.rows(sample, steps, tensors)
        if not kept.head.identity["for_images"]:
            ends_of_run(steps, tensors)
        text = len(json.dumps([row.to_json() for row in rows]))
        sizes.append(tensors.bytes - known + text)
        known = tensors.bytes
    return sizes[0] + (kept.head.samples - 1) * sizes[1]


def _write(
    runs: Runs, folder: Path, kept: _Kept, answer: Callable[[], Answer] | None, progress: Progress | None
) -> None:
    """Write the samples that are not there yet, part by part; a part is there when its file of rows is.

    With `answer` no denoiser runs, and the ends say nothing.
    """
    parts, head = read_parts(folder), kept.head
    tensors = Tensors(key for part in parts for key in part.keys)
    index, done = len(parts), sum(len(part.x0) for part in parts)
    rows, ends = list[Row](), dict[str, list[str]]()
    for sample in range(done, len(runs.inputs)):
        chosen = kept.positions(sample)
        is_whole = kept.is_whole(sample)
        watch = Watch(
            head.denoisers.keys(),
            chosen.__contains__,
            answer=None if answer is None else answer(),
            last=None if is_whole else 0,
        )
        steps = runs.run(sample, watch)
        if is_whole and len(steps) != head.steps:
            raise PruningError(
                f"{runs.name}: sample {sample} took {len(steps)} sampling steps, the first one {head.steps}; all must "
                "take as many"
            )
        rows += kept.rows(sample, steps, tensors)
        ends[str(sample)] = ends_of_run(steps, tensors) if answer is None else []
        if len(ends) == PART_SAMPLES or tensors.bytes > PART_BYTES or sample + 1 == len(runs.inputs):
            with write_errors(
                "the recording", folder, "The samples that were recorded are kept; record again to go on"
            ):
                _write_part(folder, index, rows, ends, tensors)
            index, rows, ends = index + 1, [], {}
        if progress is not None:
            progress(sample + 1, len(runs.inputs))


def _write_part(
    folder: Path, index: int, rows: list[Row], ends: Mapping[str, list[str]], tensors: Tensors
) -> None:
    """Write a part: its tensors, and then its rows, which say that it is whole."""
    path, place = part_paths(folder, index)
    keys = sorted(tensors.new)
    if keys:
        with written_whole(place, flush=True) as temporary:
            tensors.write(temporary)
    content = {"keys": keys, "x0": ends, "rows": [row.to_json() for row in rows]}
    with written_whole(path, flush=True) as temporary:
        temporary.write_text(json.dumps(content) + "\n", encoding="utf-8")
