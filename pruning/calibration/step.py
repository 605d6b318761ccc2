"""What one call of the denoiser is about: whose rows, at which timestep, with which weight."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pruning.errors import PruningError

MAX_BRANCHES = 8

TIMES = ("timestep", "timesteps")
"""Names of a denoiser's argument for the timestep, from 0 to ``num_train_timesteps``."""


@dataclass(frozen=True)
class Step:
    """One call of the denoiser with B rows (samples times guidance branches).

    Attributes:
        samples: Sample index of each row, length B.
        keys: One number per (sample, guidance branch), length B: what identifies a sampling trajectory.
        timesteps: float64 (B,), CPU.
        buckets: int64 (B,), CPU.
        weights: Timestep weights w_tau, float64 (B,), CPU.
    """

    samples: tuple[int, ...]
    keys: tuple[int, ...]
    timesteps: Tensor
    buckets: Tensor
    weights: Tensor

    def row_of(self, count: int, where: str, in_order: bool = True) -> Tensor:
        """Return to which of the B rows each of a tensor's `count` leading entries belongs, int64 (count,).

        Entries that do not follow the batch (samples packed one after the other, tokens sent to an expert of which no
        router is known) are those of the call as a whole, and stand under its first row, if all its rows have one
        bucket and weight.

        Args:
            count: Leading entries.
            where: What the tensor is.
            in_order: The entries follow the batch, if their number is a multiple of B.

        Raises:
            PruningError: If it cannot be told which timestep entries have.
        """
        batch = len(self.samples)
        if count % batch == 0 and (in_order or batch == 1):
            return torch.arange(batch).repeat_interleave(count // batch)
        if not self.is_even:
            how = (
                f"sees a batch of {count}, which is no multiple of the denoiser's batch of {batch}"
                if in_order
                else f"sees {count} entries that do not follow the order of the denoiser's batch of {batch}"
            )
            raise PruningError(
                f"{where} {how}, so calibration cannot tell at which of the call's timesteps these are; give all rows "
                "of a call one timestep bucket"
            )
        return torch.zeros(count, dtype=torch.long)

    @property
    def is_even(self) -> bool:
        """Whether all rows have the same bucket and weight."""
        return bool((self.buckets == self.buckets[0]).all() and (self.weights == self.weights[0]).all())

    def describe(self, rows: Sequence[int]) -> str:
        """Say which samples and timestep buckets `rows` are, all where they are no rows of the batch, for messages."""
        rows = rows if max(rows) < len(self.samples) else range(len(self.samples))
        samples = sorted({self.samples[r] for r in rows})
        buckets = sorted({int(self.buckets[r]) for r in rows})
        return f"sample {', '.join(map(str, samples))}, timestep bucket {', '.join(map(str, buckets))}"


class StepReader:
    """Reads steps from the denoiser's own call arguments.

    Without `identify`, samples are counted: a call that is at a later (less noisy) or the same timestep as the one
    before, with the same number of samples, continues its trajectory; any other call starts new samples.

    Args:
        model: The denoiser.
        num_train_timesteps: Upper end of the timesteps.
        weights: w_tau, float64 (T,).
    """

    def __init__(self, model: nn.Module, num_train_timesteps: float, weights: Tensor) -> None:
        self._signature = inspect.signature(type(model).forward)
        self._name = type(model).__name__
        self._time = next((name for name in TIMES if name in self._signature.parameters), None)
        self._limit = num_train_timesteps
        self._weights = weights
        self._given: tuple[int, ...] | None = None
        self._buckets: Tensor | None = None
        self._branches: tuple[int, ...] | None = None
        self._times: Tensor | None = None
        self._next = 0
        self._last: tuple[float, int] | None = None

    def identify(
        self,
        samples: Sequence[int] | Tensor,
        buckets: int | Sequence[int] | Tensor | None = None,
        timesteps: Sequence[float] | Tensor | None = None,
        branches: Sequence[int] | None = None,
    ) -> None:
        """Say whose rows come next, until it is said again.

        Args:
            samples: Sample index of each row; with guidance branches, of one branch.
            buckets: Timestep buckets, if they are known; else they are computed from the timesteps.
            timesteps: Those of all rows of the call, which is then not looked at: its arguments may be of any names,
                scales and forms.
            branches: Which branch of guidance each row is, where all rows of the call are said in `samples`; None: rows
                come branch by branch.

        Raises:
            PruningError: For negative indices, buckets out of range or not as many as samples, or timesteps that are
                no multiple of them.
        """
        given = tuple(int(s) for s in samples)
        if not given or min(given) < 0:
            raise PruningError(f"sample indices must be non-negative and at least one, found {list(given)}")
        self._given = given
        self._times = None if timesteps is None else _times(timesteps)
        if self._times is not None and not bool(self._times.isfinite().all()):
            raise PruningError(f"timesteps must be finite numbers, found {self._times.tolist()}")
        if self._times is not None and len(self._times) % len(given):
            raise PruningError(
                f"{len(self._times)} timesteps were said for {len(given)} samples; a call has one row per sample, "
                "times the guidance branches"
            )
        self._branches = None if branches is None else tuple(branch % MAX_BRANCHES for branch in branches)
        if self._branches is not None and len(self._branches) != len(given):
            raise PruningError(
                f"{len(self._branches)} branches were said for {len(given)} rows; say one for each row"
            )
        self._buckets = None
        if buckets is not None:
            many = torch.as_tensor(buckets, dtype=torch.long).cpu().reshape(-1)
            count = len(self._weights)
            if len(many) not in (1, len(given)):
                raise PruningError(
                    f"timestep buckets must be one, or one per sample, found {len(many)} for {len(given)} samples"
                )
            if int(many.min()) < 0 or int(many.max()) >= count:
                raise PruningError(f"timestep buckets must be from 0 to {count - 1}, found {many.tolist()}")
            self._buckets = many

    def read(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Step:
        """Return the step of a call ``model(*args, **kwargs)``.

        Raises:
            PruningError: If the timestep is missing or out of range, or the batch does not fit the samples said.
        """
        times = self._times
        if times is None:
            sample, times = self._read(args, kwargs)
            ids, branches = self._whose(sample, times)
        else:
            assert self._given is not None
            ids, branches = self._given, len(times) // len(self._given)
        if self._times is None or self._buckets is None:
            self._check(times)
        buckets = self._bucket(times, branches)
        if self._branches is not None and branches == 1:
            keys = tuple(s * MAX_BRANCHES + b for s, b in zip(ids, self._branches, strict=True))
        else:
            keys = tuple(s * MAX_BRANCHES + b for b in range(branches) for s in ids)
        return Step(ids * branches, keys, times, buckets, self._weights[buckets])

    def _read(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Return the first tensor of a call, and its timesteps by row of the batch, (B,)."""
        if self._time is None:
            raise PruningError(
                f"{self._name}.forward has no argument named {' or '.join(TIMES)} (it has "
                f"{', '.join(self._signature.parameters)}), so calibration cannot read the timesteps; say samples, "
                "buckets and timesteps of each call by identify(...)"
            )
        bound = self._signature.bind_partial(None, *args, **kwargs).arguments
        sample = next((v for v in bound.values() if isinstance(v, Tensor)), None)
        timestep = bound.get(self._time)
        if sample is None or timestep is None:
            raise PruningError(
                f"{self._name} was called without a sample or a timestep; calibration needs both"
            )
        batch, times = sample.shape[0], _times(timestep)
        times = times.expand(batch).clone() if times.numel() == 1 else times
        if times.numel() != batch:
            raise PruningError(
                f"{self._name} was called with {times.numel()} timesteps for a batch of {batch}"
            )
        self._check_scale(times, torch.as_tensor(timestep).is_floating_point())
        return sample, times

    def _check_scale(self, times: Tensor, real: bool) -> None:
        """Refuse times from 0 to 1 where they should go up to the limit; a trajectory may end there, not begin."""
        if self._buckets is not None or not real or self._limit <= 1 or not 0 <= float(times.max()) <= 1:
            return
        if self._given is None:
            starts = self._last is None or float(times.max()) > self._last[0]
        else:
            starts = bool((times != times.round()).any())
        if starts:
            raise PruningError(
                f"{self._name} was called with timesteps from {float(times.min()):g} to {float(times.max()):g}, but "
                f"num_train_timesteps is {self._limit:g}: it takes times from 0 to 1, and their direction is its own; "
                "say the buckets by identify(samples, buckets), bucket 0 being the least noise"
            )

    def _check(self, times: Tensor) -> None:
        low, high = float(times.min()), float(times.max())
        if not (math.isfinite(low) and low >= 0 and high <= self._limit):
            raise PruningError(
                f"{self._name} was called with timesteps from {low:g} to {high:g}; num_train_timesteps is "
                f"{self._limit:g}, so they must be from 0 to {self._limit:g}"
            )

    def _bucket(self, times: Tensor, branches: int) -> Tensor:
        count = len(self._weights)
        if self._buckets is None:
            return (times * count / self._limit).floor().long().clamp(0, count - 1)
        return self._buckets.expand(len(times) // branches).repeat(branches)

    def _whose(self, sample: Tensor, times: Tensor) -> tuple[tuple[int, ...], int]:
        """Return the sample indices of one guidance branch and the number of branches."""
        batch = sample.shape[0]
        if self._given is not None:
            branches, rest = divmod(batch, len(self._given))
            if rest or not 1 <= branches <= MAX_BRANCHES:
                raise PruningError(
                    f"{self._name} was called with a batch of {batch}, but the samples said to come next are "
                    f"{len(self._given)}; a batch is one row per sample, times the guidance branches"
                )
            return self._given, branches
        branches = _guidance_branches(sample)
        count, latest = batch // branches, float(times.max())
        continues = self._last is not None and latest <= self._last[0] and count == self._last[1]
        if not continues:
            self._next += 0 if self._last is None else self._last[1]
        self._last = (latest, count)
        return tuple(range(self._next, self._next + count)), branches


def _times(timesteps: Any) -> Tensor:
    return torch.as_tensor(timesteps).detach().to("cpu", torch.float64).reshape(-1)


def _guidance_branches(sample: Tensor) -> int:
    """Return how many copies of the same latents the batch holds, as pipelines stack them for guidance."""
    for branches in (2, 3):
        parts = sample.chunk(branches)
        if sample.shape[0] % branches == 0 and all(torch.equal(parts[0], p) for p in parts[1:]):
            return branches
    return 1


def timestep_weights(kind: str | Sequence[float], buckets: int) -> Tensor:
    """Return the weights w_tau of the timestep buckets, float64 (T,); bucket 0 is the least noise.

    Args:
        kind: ``uniform`` (all 1); ``obs_diff``: decreasing with the logarithm of the step from 1.2 at high noise to
            0.8, in 4 steps (OBS-Diff, arXiv 2510.06751); or T positive numbers.
        buckets: T.

    Raises:
        PruningError: For another word or numbers that do not fit.
    """
    if kind == "uniform":
        return torch.ones(buckets, dtype=torch.float64)
    if kind == "obs_diff":
        from_noise = torch.arange(buckets - 1, -1, -1, dtype=torch.float64)
        quarter = (from_noise * 4 / buckets).floor()
        return 1.2 - 0.4 * torch.log1p(quarter) / math.log(4)
    if isinstance(kind, str):
        raise PruningError(
            f"timestep_weights {kind!r}: give {buckets} numbers, for 'sampler' those of sampler_weights(scheduler, …); "
            "words that need none: uniform, obs_diff"
        )
    weights = torch.tensor([float(w) for w in kind], dtype=torch.float64)
    if len(weights) != buckets or not bool((torch.isfinite(weights) & (weights > 0)).all()):
        raise PruningError(f"timestep_weights must be {buckets} positive numbers, found {list(kind)}")
    return weights


def by_bucket(buckets: Tensor) -> Iterator[tuple[int, Tensor | slice]]:
    """Yield every timestep bucket among `buckets` (S,) and where it is, as an index."""
    found = buckets.unique().tolist()
    for bucket in found:
        yield bucket, slice(None) if len(found) == 1 else (buckets == bucket).nonzero().flatten()


def check_finite(x: Tensor, where: str, describe: Callable[[list[int]], str]) -> None:
    """Raise PruningError naming module, samples and timestep bucket if `x` (S, ...) holds NaN or infinity.

    Args:
        x: The tensor.
        where: What it is, naming the module.
        describe: Says what some of the leading entries of `x` are.
    """
    x = x.detach()
    if bool(torch.isfinite(x.sum(dtype=torch.float64 if x.dtype == torch.float64 else torch.float32))):
        return
    bad = ~torch.isfinite(x).reshape(x.shape[0], -1).all(1)
    if bool(bad.any()):
        found = describe(bad.nonzero().flatten().tolist())
        raise PruningError(
            f"{where} holds NaN or infinity ({found}); check the model's weights and dtype and the data"
        )
