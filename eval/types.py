"""What an evaluation is given: the subjects, the data and the options.

Shapes: images are uint8 ``(N, C, H, W)``; predictions and targets are float ``(B, C, H, W)``; sample ids are
int64 ``(B,)``. Everything random is seeded by sample id, so that no result depends on the batch size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from eval.features import FeatureExtractor, load_features


@dataclass(frozen=True)
class Subject:
    """One model under test.

    Attributes:
        name: Name in the results, e.g. ``"dense"``.
        predict: Maps the denoiser's call arguments to its prediction ``(B, C, H, W)``.
        sample: Maps sample ids ``(B,)`` to uint8 images ``(B, C, H, W)``; image i depends on id i alone.
        model: The denoiser, in eval mode.
        folder: Where its safetensors files lie (the denoiser's own, not the whole pipeline's).
    """

    name: str
    predict: Callable[[Mapping[str, Any]], Tensor] | None = None
    sample: Callable[[Tensor], Tensor] | None = None
    model: nn.Module | None = None
    folder: Path | None = None


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
        rounds: Rounds of the denoiser call; every subject is timed once a round.
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


@dataclass
class Context:
    """Everything the metrics read, with what they share cached: the images and their features.

    Attributes:
        subjects: By name; the first is the reference (the dense model).
        real: Returns the held-out real images, uint8 ``(M, C, H, W)``.
        noised: Returns noised held-out batches; called once a measurement. See `Noised.of`.
        call: Returns plausible call arguments for a batch size, on the subjects' device.
        features: What `eval.features.load_features` takes, or a loaded extractor.
        num_samples: Images to sample from every subject, ids ``0 .. num_samples - 1``.
        batch_size: Images to sample, or to extract features from, at once.
        latency: Options of `eval.latency`.
        device: Where features are extracted.
        antialias: How images are resized for Inception; False is comparable with papers.
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
    latency: LatencyOptions = field(default_factory=LatencyOptions)
    device: str | torch.device = "cpu"
    antialias: bool = False
    seed: int = 0
    progress: Callable[[str, int, int], None] | None = None
    _tensors: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False)
    _extractor: FeatureExtractor | None = field(default=None, init=False, repr=False)

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
        for name in ("num_samples", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"Context.{name} is {getattr(self, name)}; it must be at least 1")

    @property
    def reference(self) -> Subject:
        """The subject that the others are compared with: the first."""
        return next(iter(self.subjects.values()))

    def check(self, metric: str, needs: Iterable[str]) -> None:
        """Make sure that what `metric` reads is there.

        Args:
            metric: Name of the metric, for the message.
            needs: Names of attributes of `Context`, or of `Subject` (then every subject must have it).

        Raises:
            ValueError: Naming the metric and the first thing missing, or a model in training mode.
        """
        for need in needs:
            if hasattr(self, need):
                if getattr(self, need) is None:
                    raise ValueError(f"metric {metric!r} needs Context.{need}, which is None; give it")
                continue
            for subject in self.subjects.values():
                if getattr(subject, need) is None:
                    raise ValueError(
                        f"metric {metric!r} needs Subject.{need}; subject {subject.name!r} has none"
                    )
        for subject in self.subjects.values():
            if subject.model is not None and subject.model.training:
                raise ValueError(
                    f"subject {subject.name!r}: the model is in training mode, so dropout would change metric "
                    f"{metric!r}; call model.eval()"
                )

    def report_progress(self, what: str, done: int, total: int) -> None:
        """Tell the caller how far `what` is."""
        if self.progress is not None:
            self.progress(what, done, total)

    @torch.no_grad()
    def images(self, name: str, metric: str = "samples") -> Tensor:
        """Return the images of a subject, sampled once: uint8 ``(num_samples, C, H, W)`` on the CPU.

        Raises:
            ValueError: If the sample function returns NaN, another dtype, shape or number of images.
        """
        key = f"images of {name}"
        if key not in self._tensors:
            self.check(metric, ["sample"])
            sample = self.subjects[name].sample
            assert sample is not None
            batches = []
            for start in range(0, self.num_samples, self.batch_size):
                ids = torch.arange(start, min(start + self.batch_size, self.num_samples))
                batch = sample(ids)
                place = f"subject {name!r}, metric {metric!r}, samples {start} to {start + len(ids) - 1}"
                check_images(batch, place)
                if len(batch) != len(ids):
                    raise ValueError(f"{place}: {len(batch)} images came for {len(ids)} sample ids")
                batches.append(batch.cpu())
                self.report_progress(f"sampling {name}", start + len(ids), self.num_samples)
            self._tensors[key] = torch.cat(batches)
        return self._tensors[key]

    def real_images(self, metric: str = "samples") -> Tensor:
        """Return the real images, uint8 ``(M, C, H, W)`` on the CPU, fetched once."""
        if "real images" not in self._tensors:
            self.check(metric, ["real"])
            assert self.real is not None
            images = self.real()
            check_images(images, f"metric {metric!r}, real images")
            self._tensors["real images"] = images.cpu()
        return self._tensors["real images"]

    def extractor(self) -> FeatureExtractor:
        """Return the feature extractor, loaded once."""
        if self._extractor is None:
            if self.features is None:
                raise ValueError(
                    "Context.features is None; give 'inception', a classifier folder or a module"
                )
            if isinstance(self.features, FeatureExtractor):
                self._extractor = self.features
            else:
                self._extractor = load_features(self.features, self.device, antialias=self.antialias)
        return self._extractor

    def image_features(self, name: str | None, metric: str = "features") -> Tensor:
        """Return the features of a subject's images, or of the real ones for None; ``(N, d)``, extracted once."""
        key = f"features of {name}" if name is not None else "features of the real images"
        if key not in self._tensors:
            images = self.real_images(metric) if name is None else self.images(name, metric)
            who = "real images" if name is None else f"subject {name!r}"
            self._tensors[key] = self.extractor().extract(
                images, batch_size=self.batch_size, place=f"{who}, metric {metric!r}"
            )
        return self._tensors[key]


def check_images(images: Tensor, place: str) -> None:
    """Raise ValueError unless `images` is uint8 of shape ``(N, C, H, W)``; NaN is named as such."""
    if images.is_floating_point() and not bool(torch.isfinite(images).all()):
        raise ValueError(
            f"{place}: the images hold NaN or infinity; check the model's weights and its dtype (float16 overflows)"
        )
    if images.dtype != torch.uint8 or images.ndim != 4:
        raise ValueError(
            f"{place}: images must be rounded uint8 (N, C, H, W), found {images.dtype} {tuple(images.shape)}"
        )
