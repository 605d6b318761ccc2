"""What an evaluation is given: the subjects, the data and the options.

Shapes: samples are images, videos or sounds as in `eval.media`; predictions and targets are float ``(B, C, H, W)``;
sample ids are int64 ``(B,)``. Everything random is seeded by sample id, so that no result depends on the batch size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor, nn

from eval.features import FeatureExtractor
from eval.observation import Rows

DATA = "data"
"""Stands among the names of subjects for the held-out data, which show features of real images."""


@dataclass(frozen=True)
class Subject:
    """One model under test.

    Attributes:
        predict: Maps the denoiser's call arguments to its prediction ``(B, C, H, W)``.
        sample: Maps sample ids ``(B,)`` to samples ``(B, …)``; sample i depends on id i alone.
        model: The denoiser, in eval mode.
        file_bytes: Size of its weights as they are saved; see `eval.cost.saved_bytes`.
        answer: Maps a noised batch to what its target is of, ``(B, ...)``; None: its call's prediction.
    """

    predict: Callable[[Mapping[str, Any]], Tensor] | None = None
    sample: Callable[[Tensor], Tensor] | None = None
    model: nn.Module | None = None
    file_bytes: int | None = None
    answer: Callable[[Any], Tensor] | None = None


class Noised(NamedTuple):
    """One noised batch of held-out data, all of one timestep bucket; any object with these attributes is one.

    Attributes:
        call: The denoiser's call arguments.
        target: What it should predict, ``(B, C, H, W)``; None where only the reference's own prediction is known.
        bucket: Timestep bucket, 0 is the least noise.
        sample_ids: Which image each row is, ``(B,)``.
    """

    call: Mapping[str, Any]
    target: Tensor | None
    bucket: int
    sample_ids: Tensor


@dataclass(frozen=True)
class LatencyOptions:
    """How latency is measured; see `eval.latency`.

    Attributes:
        batch_size: Images in one denoiser call, and in one sampling run.
        rounds: Rounds of the denoiser call; every subject is timed once per round.
        sampling_rounds: Rounds of whole sampling runs; 0 leaves them out, six are the least for a 95 % interval.
        num_threads: CPU threads; None takes what torch uses now.
        modes: How calls are made, of `eval.latency.MODES`; each is a row besides.
        batch_sizes: Further batch sizes of one call, each a row besides, in every mode.

    Raises:
        ValueError: Naming the first option that cannot be.
    """

    batch_size: int
    rounds: int
    sampling_rounds: int
    num_threads: int | None
    modes: Sequence[str] = ("eager",)
    batch_sizes: Sequence[int] = ()

    def __post_init__(self) -> None:
        _check_least(self, batch_size=1, rounds=1, sampling_rounds=0, num_threads=1)


@dataclass(frozen=True)
class Context:
    """Everything that is looked at, and how.

    Attributes:
        subjects: By name; the first is the reference (the dense model).
        real: Returns the held-out real images, uint8 ``(M, C, H, W)``, whole or in batches.
        noised: Returns noised held-out batches with the attributes of `Noised`; called once for each subject.
        call: Returns plausible call arguments for a batch size, on the subjects' device.
        features: Returns the feature extractor; called once for each subject and for the data.
        networks: Further networks, which metrics name for themselves, by name (`eval.networks`); each returns it.
        prompts: Maps sample ids ``(B,)`` to the texts that these samples are made from.
        num_samples: Samples to draw from every subject, ids ``0 .. num_samples - 1``.
        batch_size: Images to sample, or to extract features from, at once.
        workers: Batches to sample or to predict side by side, each on one CPU thread (`eval.workers`). With more than
            one, `sample` and `predict` of the subjects are called in several threads at a time.
        latency: Options of `eval.latency`.
        seed: Seeds the bootstrap and the subsets of the kernel distance.
        progress: Called with (what, done, total); total is 0 where it is unknown.

    Raises:
        ValueError: If there is no subject, one is named `DATA`, or a size is below 1.
    """

    subjects: Mapping[str, Subject]
    real: Callable[[], Tensor | Rows] | None = None
    noised: Callable[[], Iterable[Any]] | None = None
    call: Callable[[int], Mapping[str, Any]] | None = None
    features: Callable[[], FeatureExtractor] | None = None
    networks: Mapping[str, Callable[[], Any]] = field(default_factory=dict)
    prompts: Callable[[Tensor], Sequence[str]] | None = None
    num_samples: int = 1000
    batch_size: int = 64
    workers: int = 1
    latency: LatencyOptions | None = None
    seed: int = 0
    progress: Callable[[str, int, int], None] = lambda what, done, total: None

    def __post_init__(self) -> None:
        if not self.subjects:
            raise ValueError("Context.subjects is empty; give at least the reference")
        if DATA in self.subjects:
            raise ValueError(
                f"Context.subjects names {DATA!r}, which stands for the data; choose another name"
            )
        _check_least(self, num_samples=1, batch_size=1, workers=1)

    @property
    def reference(self) -> str:
        """Name of the subject that the others are compared with: the first."""
        return next(iter(self.subjects))


def _check_least(options: LatencyOptions | Context, **least: int) -> None:
    """Raise ValueError for the first of the named options that is below its least value; None is none."""
    for name, bound in least.items():
        value = getattr(options, name)
        if value is not None and value < bound:
            raise ValueError(f"{type(options).__name__}.{name} is {value}; it must be at least {bound}")
