"""What an evaluation is given: the subjects, the data and the options.

Shapes: images are uint8 ``(N, C, H, W)``; predictions and targets are float ``(B, C, H, W)``; sample ids are
int64 ``(B,)``. Everything random is seeded by sample id, so that no result depends on the batch size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from eval.features import FeatureExtractor, load_features

DATA = "data"
"""Stands among the names of subjects for the held-out data, which show features of real images."""


@dataclass(frozen=True)
class Subject:
    """One model under test.

    Attributes:
        name: Name in the results, e.g. ``"dense"``.
        predict: Maps the denoiser's call arguments to its prediction ``(B, C, H, W)``.
        sample: Maps sample ids ``(B,)`` to uint8 images ``(B, C, H, W)``; image i depends on id i alone.
        model: The denoiser, in eval mode.
        folder: Where its safetensors files lie (the denoiser's own, not the whole pipeline's).
        file_bytes: Their size where there are none to look at; see `eval.cost.saved_bytes`.
    """

    name: str
    predict: Callable[[Mapping[str, Any]], Tensor] | None = None
    sample: Callable[[Tensor], Tensor] | None = None
    model: nn.Module | None = None
    folder: Path | None = None
    file_bytes: int | None = None


class Noised(NamedTuple):
    """One noised batch of held-out data, all of one timestep bucket.

    Attributes:
        call: The denoiser's call arguments.
        target: What it should predict, ``(B, C, H, W)``.
        bucket: Timestep bucket, 0 is the least noise.
        sample_ids: Which image each row is, ``(B,)``; None if unknown, then no interval can be given.
    """

    call: Mapping[str, Any]
    target: Tensor
    bucket: int
    sample_ids: Tensor | None = None

    @classmethod
    def of(cls, item: Any) -> Noised:
        """Read a batch: an object with these four attributes, or a tuple of the first three or all four.

        Raises:
            ValueError: If it is neither.
        """
        if all(hasattr(item, name) for name in cls._fields):
            return cls(item.call, item.target, int(item.bucket), item.sample_ids)
        if isinstance(item, tuple) and len(item) in (3, 4):
            call, target, bucket = item[:3]
            return cls(call, target, int(bucket), item[3] if len(item) == 4 else None)
        raise ValueError(
            f"Context.noised yielded {type(item).__name__}; give an object with the attributes "
            f"{', '.join(cls._fields)}, or a tuple (call, target, bucket[, sample_ids])"
        )


@dataclass(frozen=True)
class LatencyOptions:
    """How latency is measured; see `eval.latency`.

    Attributes:
        batch_size: Images in one denoiser call.
        rounds: Rounds of the denoiser call; every subject is timed once per round.
        min_run_s: Least time of one timed block of calls, in seconds.
        sampling: Whether whole sampling runs are timed too.
        sampling_batch_size: Images in one sampling run.
        sampling_rounds: Rounds of sampling runs; six is the least that carries a 95 % interval.
        warmup: Untimed calls of every subject before the first round.
        num_threads: CPU threads; None takes what torch uses now.
    """

    batch_size: int = 32
    rounds: int = 15
    min_run_s: float = 0.05
    sampling: bool = True
    sampling_batch_size: int = 32
    sampling_rounds: int = 6
    warmup: int = 2
    num_threads: int | None = None

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ValueError: Naming the first option that cannot be.
        """
        least = {"batch_size": 1, "rounds": 1, "sampling_batch_size": 1, "sampling_rounds": 1, "warmup": 0}
        for name, bound in least.items():
            if getattr(self, name) < bound:
                raise ValueError(
                    f"LatencyOptions.{name} is {getattr(self, name)}; it must be at least {bound}"
                )
        if self.num_threads is not None and self.num_threads < 1:
            raise ValueError(
                f"LatencyOptions.num_threads is {self.num_threads}; it must be at least 1 or None"
            )


@dataclass(frozen=True)
class Context:
    """Everything that is looked at, and how.

    Attributes:
        subjects: By name; the first is the reference (the dense model).
        real: Returns the held-out real images, uint8 ``(M, C, H, W)``.
        noised: Returns noised held-out batches; called once for each subject. See `Noised.of`.
        call: Returns plausible call arguments for a batch size, on the subjects' device.
        features: What `eval.features.load_features` takes, or a loaded extractor.
        num_samples: Images to sample from every subject, ids ``0 .. num_samples - 1``.
        batch_size: Images to sample, or to extract features from, at once.
        workers: Batches to sample or to predict side by side, each on one CPU thread (`eval.workers`). With more than
            one, `sample` and `predict` of the subjects are called in several threads at a time.
        latency: Options of `eval.latency`.
        device: Where features are extracted.
        seed: Seeds the bootstrap and the subsets of the kernel distance.
        progress: Called with (what, done, total); total is 0 where it is unknown.
    """

    subjects: Mapping[str, Subject]
    real: Callable[[], Tensor] | None = None
    noised: Callable[[], Iterable[Any]] | None = None
    call: Callable[[int], Mapping[str, Any]] | None = None
    features: str | Path | nn.Module | FeatureExtractor | None = None
    num_samples: int = 1000
    batch_size: int = 64
    workers: int = 1
    latency: LatencyOptions = field(default_factory=LatencyOptions)
    device: str | torch.device = "cpu"
    seed: int = 0
    progress: Callable[[str, int, int], None] | None = None

    def __post_init__(self) -> None:
        """Check names and sizes.

        Raises:
            ValueError: If there is no subject, a key is not its subject's name, or a size is below 1.
        """
        if not self.subjects:
            raise ValueError("Context.subjects is empty; give at least the reference")
        for key, subject in self.subjects.items():
            if key != subject.name:
                raise ValueError(
                    f"Context.subjects[{key!r}] is named {subject.name!r}; key and name must agree"
                )
        if DATA in self.subjects:
            raise ValueError(
                f"Context.subjects names {DATA!r}, which stands for the data; choose another name"
            )
        for name in ("num_samples", "batch_size", "workers"):
            if getattr(self, name) < 1:
                raise ValueError(f"Context.{name} is {getattr(self, name)}; it must be at least 1")

    @property
    def reference(self) -> Subject:
        """The subject that the others are compared with: the first."""
        return next(iter(self.subjects.values()))

    @cached_property
    def extractor(self) -> FeatureExtractor:
        """The feature extractor, loaded when first asked for."""
        if self.features is None:
            raise ValueError("Context.features is None; give 'inception', a classifier folder or a module")
        if isinstance(self.features, FeatureExtractor):
            return self.features
        return load_features(self.features, self.device)

    def report_progress(self, what: str, done: int, total: int) -> None:
        """Tell the caller how far `what` is."""
        if self.progress is not None:
            self.progress(what, done, total)

    def check(self, metric: str, needs: Iterable[str], subjects: Iterable[str] | None = None) -> None:
        """Make sure that what `metric` needs is there.

        Args:
            metric: Name of the metric, for the message.
            needs: Names of attributes of `Context`, or of `Subject` (then every subject must have it).
            subjects: The subjects that will be looked at; None are all.

        Raises:
            ValueError: Naming the metric and the first thing missing, or a model in training mode.
        """
        looked_at = [self.subjects[name] for name in (self.subjects if subjects is None else subjects)]
        for need in needs:
            if need in Context.__dataclass_fields__:
                if getattr(self, need) is None:
                    raise ValueError(f"metric {metric!r} needs Context.{need}, which is None; give it")
                continue
            for subject in looked_at:
                if getattr(subject, need) is None:
                    raise ValueError(
                        f"metric {metric!r} needs Subject.{need}; subject {subject.name!r} has none"
                    )
        for subject in looked_at:
            if subject.model is not None and subject.model.training:
                raise ValueError(
                    f"subject {subject.name!r}: the model is in training mode, so dropout would change metric "
                    f"{metric!r}; call model.eval()"
                )
