"""Denoising error by bucket and excess error, by hand and in simulation."""

import math
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from eval.intervals import ratio_interval
from eval.run import measure_all
from eval.types import Context, Noised, Subject


def measured(context: Context) -> dict[str, dict[str, Any]]:
    return measure_all(context, ["denoising"])


def constant(value: float):
    return lambda call: torch.full_like(call["sample"], value)


def batches(target: float = 1.0) -> Iterator[Noised]:
    for chunk in range(2):
        for bucket in (0, 2):
            sample = torch.zeros(3, 1, 2, 2)
            sample_ids = torch.arange(3) + 3 * chunk
            yield Noised({"sample": sample}, torch.full_like(sample, target), bucket, sample_ids)


def test_constant_predictions_by_hand() -> None:
    subjects = {"dense": Subject(constant(2.0)), "slim": Subject(constant(3.0))}
    result = measured(Context(subjects, noised=batches))
    assert result["dense"]["denoising_error"] == [1.0, None, 1.0]
    assert result["dense"]["denoising_error_mean"] == 1.0
    assert result["dense"]["excess_error"] == 0
    assert result["slim"]["denoising_error"] == [4.0, None, 4.0]
    assert result["slim"]["excess_error"] == 0.25  # (3 - 2)^2 / 2^2
    assert result["slim"]["excess_error_ci95"] == [0.25, 0.25]
    assert result["slim"]["excess_error_by_bucket"] == [0.25, None, 0.25]
    assert result["slim"]["denoising_samples"] == 12
    assert result["slim"]["denoising_images"] == 6


def test_intervals_are_clustered_by_image() -> None:
    # Two images in two buckets each: image 0 errs by 1, image 1 by 3; copies of an image are no new evidence.
    offset = torch.tensor([1.0, math.sqrt(3.0)]).reshape(2, 1, 1, 1)

    def noised() -> Iterator[Noised]:
        for bucket in (0, 1):
            yield Noised({"sample": offset}, torch.zeros(2, 1, 1, 1), bucket, torch.arange(2))

    result = measured(Context({"dense": Subject(lambda call: call["sample"])}, noised=noised))["dense"]
    # a = (2, 6), b = (2, 2): residuals (-2, 2), variance 2 / 1 * 8 / 16, t(0.975, 1) = 12.706205
    assert result["denoising_error_mean"] == pytest.approx(2)
    assert result["denoising_error_ci95"] == pytest.approx([2 - 12.706205, 2 + 12.706205], rel=1e-6)


def test_every_bucket_has_its_interval_over_its_own_images() -> None:
    # In a bucket dense errs by 1 and 2 (images 0 and 1), slim by 2 and 2; in bucket 2 all twice as far; 1 is empty.
    def noised() -> Iterator[Noised]:
        for bucket, far in ((0, 1.0), (2, 2.0)):
            sample = far * torch.tensor([1.0, 2.0]).reshape(2, 1, 1, 1)
            slim = far * torch.tensor([2.0, 2.0]).reshape(2, 1, 1, 1)
            yield Noised({"sample": sample, "slim": slim}, torch.zeros(2, 1, 1, 1), bucket, torch.arange(2))

    subjects = {
        name: Subject(lambda call, key=key: call[key])
        for name, key in (("dense", "sample"), ("slim", "slim"))
    }
    found = measured(Context(subjects, noised=noised))
    for bucket, far in ((0, 1.0), (2, 4.0)):
        errors = torch.tensor([1.0, 4.0]) * far, torch.tensor([4.0, 4.0]) * far
        change = torch.tensor([1.0, 0.0]) * far
        for subject, error in zip(("dense", "slim"), errors, strict=True):
            own = found[subject]["denoising_error_by_bucket_ci95"][bucket]
            assert own == pytest.approx(ratio_interval(error, torch.ones(2)))
        paired = found["slim"]["denoising_error_ratio_by_bucket_ci95"][bucket]
        assert paired == pytest.approx(ratio_interval(errors[1], errors[0]))
        excess = found["slim"]["excess_error_by_bucket_ci95"][bucket]
        assert excess == pytest.approx(ratio_interval(change, errors[0]))
    for key in ("denoising_error", "denoising_error_ratio", "excess_error"):
        assert found["slim"][f"{key}_by_bucket_ci95"][1] is None


def test_batch_size_changes_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    sample, target = (
        torch.randn(12, 1, 2, 2, generator=generator),
        torch.randn(12, 1, 2, 2, generator=generator),
    )

    def noised(size: int) -> Iterator[Noised]:
        for ids in torch.arange(12).split(size):
            yield Noised({"sample": sample[ids]}, target[ids], 0, ids)

    subjects = {
        "dense": Subject(lambda call: call["sample"]),
        "slim": Subject(lambda call: call["sample"].sin()),
    }
    one, other = (measured(Context(subjects, noised=lambda s=s: noised(s)))["slim"] for s in (12, 5))
    for key in ("denoising_error_mean", "denoising_error_ci95", "excess_error", "excess_error_ci95"):
        assert one[key] == pytest.approx(other[key], rel=1e-12)


def test_any_object_with_the_attributes_of_a_batch_is_one() -> None:
    subjects = {"dense": Subject(constant(2.0))}
    objects = measured(Context(subjects, noised=lambda: (SimpleNamespace(**b._asdict()) for b in batches())))
    assert objects == measured(Context(subjects, noised=batches))


def broken(call: dict[str, Tensor]) -> Tensor:
    predicted = torch.ones_like(call["sample"])
    predicted[1, 0, 0, 0] = math.nan
    return predicted


def test_nan_names_subject_metric_and_place() -> None:
    subjects = {"dense": Subject(constant(1.0)), "slim": Subject(broken)}
    expected = "subject 'slim', metric 'denoising', batch 0, timestep bucket 0, prediction: NaN .* 1 of 3 .* sample 1;"
    with pytest.raises(ValueError, match=expected):
        measured(Context(subjects, noised=batches))


def test_nan_in_the_target_is_not_blamed_on_a_subject() -> None:
    with pytest.raises(ValueError, match="metric 'denoising', target of batch 0, timestep bucket 0: NaN"):
        measured(Context({"dense": Subject(constant(1.0))}, noised=lambda: batches(math.inf)))


def test_a_learned_variance_left_in_the_prediction() -> None:
    doubled = Subject(lambda call: torch.cat([call["sample"]] * 2, dim=1))
    with pytest.raises(ValueError, match=r"prediction has shape \(3, 2, 2, 2\), the target \(3, 1, 2, 2\)"):
        measured(Context({"dense": doubled}, noised=batches))


def test_no_batch() -> None:
    with pytest.raises(ValueError, match=r"Context\.noised yielded no batch"):
        measured(Context({"dense": Subject(constant(1.0))}, noised=list))


def test_a_silent_reference_has_no_excess_error() -> None:
    subjects = {"dense": Subject(constant(0.0)), "slim": Subject(constant(1.0))}
    result = measured(Context(subjects, noised=batches))["slim"]
    assert result["excess_error"] is None
    assert result["excess_error_ci95"] is None


def test_the_ratio_of_denoising_errors_is_paired_by_image() -> None:
    generator = torch.Generator().manual_seed(0)
    sample, target = (torch.randn(40, 1, 2, 2, generator=generator) for _ in range(2))
    ids = torch.arange(40) // 2  # two rows an image
    subjects = {
        "dense": Subject(lambda call: call["sample"]),
        "slim": Subject(lambda call: 1.2 * call["sample"] + 0.1),
    }
    found = measured(Context(subjects, noised=lambda: [Noised({"sample": sample}, target, 0, ids)]))
    errors = [(x.double() - target.double()).square().mean((1, 2, 3)) for x in (sample, 1.2 * sample + 0.1)]
    base, slim = (error.view(20, 2).sum(1) for error in errors)
    assert found["slim"]["denoising_error_ratio"] == pytest.approx(float(slim.sum() / base.sum()), rel=1e-6)
    assert found["slim"]["denoising_error_ratio_ci95"] == pytest.approx(ratio_interval(slim, base), rel=1e-5)
    assert found["dense"]["denoising_error_ratio_ci95"] == [1, 1]
    assert found["slim"]["denoising_error_mean_samples"] == 20
    assert found["slim"]["denoising_error_mean_detectable"] > 0
