"""Metrics by file name, the context's caches and its checks."""

import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

import eval as eval_package
from eval.features import load_features
from eval.metrics import available_metrics
from eval.observation import Observation
from eval.run import check_metrics, look, measure_all, needs_of, observations
from eval.types import DATA, Context, LatencyOptions, Noised, Subject


class Denoiser(nn.Module):
    """One convolution: enough to count, time and compare."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 3, padding=1)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))

    def forward(self, sample: Tensor) -> Tensor:
        return self.conv(sample)


def noise(ids: Tensor) -> Tensor:
    rows = [torch.randn(1, 8, 8, generator=torch.Generator().manual_seed(int(i))) for i in ids]
    return torch.stack(rows)


def subject(seed: int) -> Subject:
    model = Denoiser(seed).eval()
    return Subject(
        predict=lambda call: model(call["sample"]),
        sample=lambda ids: (model(noise(ids)) * 64 + 128).clamp(0, 255).round().to(torch.uint8),
        model=model,
    )


def whole_context(batch_size: int = 16) -> Context:
    subjects = {name: subject(seed) for seed, name in enumerate(("dense", "pruned"))}
    ids = torch.arange(6)
    return Context(
        subjects,
        real=lambda: (noise(torch.arange(100, 150)) * 64 + 128).clamp(0, 255).to(torch.uint8),
        noised=lambda: [Noised({"sample": noise(ids)}, noise(ids + 50), 0, ids)],
        call=lambda n: {"sample": noise(torch.arange(n))},
        features=lambda: load_features(nn.Sequential(ToFloat(), nn.AdaptiveAvgPool2d(2), nn.Flatten())),
        num_samples=40,
        batch_size=batch_size,
        latency=LatencyOptions(batch_size=2, rounds=1, sampling_rounds=1, num_threads=None),
    )


class ToFloat(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.float()


ALL = [
    "consistency",
    "cost",
    "denoising",
    "fid",
    "fid_infinity",
    "kid",
    "latency",
    "pairs",
    "precision_recall",
]
NETWORKED = ["clip_score", "cmmd", "fd_dinov2", "lpips"]


def test_metrics_are_found_by_file_name(tmp_path) -> None:
    assert list(available_metrics()) == sorted([*ALL, *NETWORKED])
    assert available_metrics()["latency"].startswith("Latency of one denoiser call")
    (tmp_path / "sharpness.py").write_text(
        '"""How sharp.\n\nMore."""\n\ndef compute(context, seen):\n    return {}\n'
    )
    (tmp_path / "helper.py").write_text("def other():\n    compute = 1\n")
    assert available_metrics(tmp_path) == {"sharpness": "How sharp."}


def test_everything_at_once_is_plain_json() -> None:
    result = measure_all(whole_context(), ALL)
    assert list(result) == ["dense", "pruned"]
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert {"frechet", "kernel", "ssim", "mse", "params", "macs", "excess_error", "call", "sampling"} <= set(
        result["pruned"]
    )


def test_batch_size_changes_no_quality() -> None:
    quality = ["fid", "kid", "consistency"]
    one, other = (measure_all(whole_context(size), quality)["pruned"] for size in (40, 7))
    for key in ("frechet", "kernel", "ssim", "mse"):
        assert one[key] == pytest.approx(other[key], rel=1e-6)


def test_images_are_sampled_once_for_all_metrics() -> None:
    calls: list[list[int]] = []

    def sample(ids: Tensor) -> Tensor:
        calls.append(ids.tolist())
        return (noise(ids) * 64 + 128).clamp(0, 255).to(torch.uint8)

    context = replace(
        whole_context(), subjects={"dense": Subject(sample=sample)}, num_samples=5, batch_size=2
    )
    measure_all(context, ["fid", "kid", "consistency"])
    assert calls == [[0, 1], [2, 3], [4]]


def test_progress_is_told() -> None:
    told: list[tuple[str, int, int]] = []
    context = replace(whole_context(), progress=lambda what, done, total: told.append((what, done, total)))
    measure_all(context, ["consistency"])
    assert told[:3] == [("sampling dense", 16, 40), ("sampling dense", 32, 40), ("sampling dense", 40, 40)]


def test_several_workers_show_what_one_does() -> None:
    metrics = ["fid", "kid", "consistency", "denoising"]
    context = replace(whole_context(batch_size=3), noised=lambda: whole_context().noised() * 5)  # type: ignore[misc]
    assert measure_all(replace(context, workers=3), metrics) == measure_all(context, metrics)


APART = ["consistency", "cost", "denoising", "fid", "fid_infinity", "kid", "pairs", "precision_recall"]
"""Metrics that are computed from what each subject shows alone."""


def seen_by(context: Context, place: Path | None = None) -> dict[str, dict[str, Observation]]:
    """Look at every subject and the data for `APART`, by way of files in `place` if it is given."""
    seen: dict[str, dict[str, Observation]] = {}
    for name in (DATA, *context.subjects):
        seen[name] = {}
        for what in observations(APART, name):
            found = look(context, name, what, seen[name])
            if place is not None:
                (place / name).mkdir(parents=True, exist_ok=True)
                found.save(place / name, what)
                found = Observation.load(place / name, what)
            seen[name][what] = found
    return seen


@pytest.mark.parametrize("files", [False, True])
def test_figures_of_what_was_seen_before_are_those_of_now_and_no_subject_is_touched(
    tmp_path: Path, files: bool
) -> None:
    context = whole_context()
    seen = seen_by(context, tmp_path if files else None)
    assert list(seen[DATA]) == ["image_features"]
    assert set(seen["dense"]) == set(seen["pruned"]) == {"samples", "image_features", "cost", "denoising"}
    bare = Context({name: Subject() for name in context.subjects}, num_samples=40, batch_size=16)
    assert measure_all(bare, APART, seen=seen) == measure_all(context, APART)


def test_what_was_not_seen_yet_is_looked_at_beside_what_was() -> None:
    context = whole_context()
    dense = replace(context, subjects={"dense": context.subjects["dense"]})
    untouched = Subject(predict=context.subjects["dense"].predict, model=Denoiser(0).eval())
    mixed = replace(context, subjects={"dense": untouched, "pruned": context.subjects["pruned"]})
    found = measure_all(mixed, [*APART, "latency"], seen=seen_by(dense))
    assert found["dense"]["call"]["runs"] == 1  # subjects take turns: latency runs those that were seen, too
    assert found["dense"]["sampling"] is None
    wanted = measure_all(context, APART)
    assert {key: found["pruned"][key] for key in wanted["pruned"]} == wanted["pruned"]


def test_what_a_look_needs_is_named_if_it_is_missing() -> None:
    context = replace(whole_context(), subjects={"dense": Subject()})
    with pytest.raises(ValueError, match=r"metric 'samples' needs Subject\.sample; subject 'dense' has none"):
        look(context, "dense", "samples", {})


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda f: (f / "samples.json").unlink(),
            r"the observation 'samples' cannot be read \(.*samples.json.*; observe",
        ),
        (
            lambda f: (f / "samples.safetensors").unlink(),
            r"cannot be read \(.*No such file.*samples.safetensors",
        ),
        (
            lambda f: (f / "samples.safetensors").write_bytes(b"x"),
            r"the observation 'samples' cannot be read .*; observe it anew",
        ),
        (lambda f: (f / "samples.json").write_text("[]"), r"the observation 'samples' cannot be read"),
    ],
)
def test_an_observation_that_is_not_whole(tmp_path: Path, spoil, message: str) -> None:
    look(whole_context(), "dense", "samples", {}).save(tmp_path, "samples")
    spoil(tmp_path)
    with pytest.raises(ValueError, match=message):
        Observation.load(tmp_path, "samples")


def test_observations_that_do_not_belong_together() -> None:
    context = whole_context()
    seen = seen_by(context)
    features = seen["pruned"]["image_features"]
    seen["pruned"]["image_features"] = Observation(features.tensors, {**features.facts, "name": "other"})
    with pytest.raises(
        ValueError, match=r"subject 'pruned' was observed with the features .*'other'.*the real images with"
    ):
        measure_all(context, ["fid"], seen=seen)
    fewer = {"features": features.tensors["features"][1:]}
    seen["pruned"]["image_features"] = Observation(fewer, features.facts)
    with pytest.raises(
        ValueError, match=r"different numbers of images: \{'dense': 40, 'pruned': 39\}; observe them anew"
    ):
        measure_all(context, ["kid"], seen=seen)
    rows = seen["pruned"]["denoising"].tensors
    seen["pruned"]["denoising"] = Observation({**rows, "bucket": rows["bucket"] + 1})
    with pytest.raises(
        ValueError, match=r"'pruned', metric 'denoising': it was observed on other images, timesteps"
    ):
        measure_all(context, ["denoising"], seen=seen)


def test_an_unknown_metric_is_named_with_the_valid_ones() -> None:
    with pytest.raises(
        ValueError,
        match=r"unknown metric 'fidd' \(did you mean 'fid'\?\); valid: clip_score, cmmd, consistency, cost",
    ):
        check_metrics(["fid", "fidd"])
    for name in ("types", "run", "../fid", ""):
        with pytest.raises(ValueError, match="unknown metric"):
            measure_all(whole_context(), [name])


def test_what_is_missing_is_named_before_anything_is_measured() -> None:
    context = replace(whole_context(), noised=None, progress=lambda *_: pytest.fail("something was measured"))
    with pytest.raises(ValueError, match=r"metric 'denoising' needs Context.noised, which is None"):
        measure_all(context, ["fid", "denoising"])
    context = replace(context, subjects={**context.subjects, "pruned": Subject()})
    with pytest.raises(ValueError, match=r"metric 'fid' needs Subject\.sample; subject 'pruned' has none"):
        measure_all(context, ["fid"])


def test_what_metrics_need_is_what_their_observations_need() -> None:
    assert needs_of(["fid"]) == needs_of(["kid"]) == {"sample", "real", "features"}
    assert needs_of(["consistency", "denoising"]) == {"sample", "predict", "noised"}
    assert needs_of(["cost"]) == {"predict", "model", "call"}
    assert needs_of(["latency"]) == {"predict", "model", "call", "latency"}


def test_a_model_in_training_mode_is_refused() -> None:
    context = whole_context()
    model = context.subjects["pruned"].model
    assert model is not None
    model.train()
    with pytest.raises(ValueError, match=r"subject 'pruned': the model is in training mode.*call model.eval"):
        measure_all(context, ["cost"])


def with_metrics(monkeypatch: pytest.MonkeyPatch, **computes) -> None:
    for name, compute in computes.items():
        monkeypatch.setitem(sys.modules, f"eval.{name}", SimpleNamespace(compute=compute))
    monkeypatch.setattr("eval.run.available_metrics", lambda: list(computes))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (math.nan, r"subject 'dense', metric 'odd', x: nan cannot be a result"),
        ([1.0, math.inf], r"metric 'odd', x: \[1.0, inf\] cannot be a result"),
        ({"deep": -math.inf}, r"metric 'odd', x: {'deep': -inf} cannot be a result .*: look at the samples"),
        (
            torch.ones(1),
            r"metric 'odd', x: tensor\(\[1.\]\) cannot be a result .*Tensor is not JSON serializable",
        ),
    ],
)
def test_results_that_are_no_plain_numbers(monkeypatch: pytest.MonkeyPatch, value, expected: str) -> None:
    with_metrics(monkeypatch, odd=lambda context, seen: {"dense": {"x": value}})
    with pytest.raises(ValueError, match=expected):
        measure_all(whole_context(), ["odd"])


def test_a_new_metric_is_one_new_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "brightness.py").write_text(
        "from eval.observation import Observation\n"
        "NEEDS, READS = ('sample',), ('samples', 'brightness')\n"
        "def observe(context, name, seen):\n"
        "    return Observation(facts={'mean': float(seen['samples'].tensors['samples'].double().mean())})\n"
        "def compute(context, seen):\n"
        "    return {name: {'brightness': seen[name]['brightness'].facts['mean']} for name in context.subjects}\n"
    )
    monkeypatch.setattr("eval.__path__", [*eval_package.__path__, str(tmp_path)])
    monkeypatch.setattr("eval.run.available_metrics", lambda: available_metrics(tmp_path))
    context = whole_context()
    found = measure_all(context, ["brightness"])
    images = {"samples": look(context, "dense", "samples", {})}
    shown = {"dense": {**images, "brightness": look(context, "dense", "brightness", images)}}
    again = measure_all(context, ["brightness"], seen=shown)
    sys.modules.pop("eval.brightness")
    assert found == again
    assert 0 < found["dense"]["brightness"] < 255


def test_two_metrics_may_not_return_one_key(monkeypatch: pytest.MonkeyPatch) -> None:
    with_metrics(
        monkeypatch,
        one=lambda context, seen: {"dense": {"x": 1}},
        two=lambda context, seen: {"dense": {"x": 2}},
    )
    with pytest.raises(
        ValueError, match=r"metric 'two' returns \['x'\], which another metric returned already"
    ):
        measure_all(whole_context(), ["one", "two"])


@pytest.mark.parametrize(
    ("images", "expected"),
    [
        (
            torch.full((2, 1, 4, 4), math.nan),
            "subject 'dense', samples 0 to 1 hold NaN or infinity",
        ),
        (
            torch.zeros(2, 1, 4, 4),
            r"samples 0 to 1 must be images, rounded uint8 \(N, C, H, W\), .* found torch.float32",
        ),
        (torch.zeros(2, 4, 4, dtype=torch.uint8), r"found torch.uint8 \(2, 4, 4\)"),
        (torch.zeros(3, 1, 4, 4, dtype=torch.uint8), "3 samples came for 2 sample ids"),
    ],
)
def test_samples_that_are_no_images(images: Tensor, expected: str) -> None:
    context = Context({"dense": Subject(sample=lambda ids: images)}, num_samples=2)
    with pytest.raises(ValueError, match=expected):
        measure_all(context, ["consistency"])


def test_real_images_are_checked_too() -> None:
    context = replace(whole_context(), real=lambda: torch.zeros(4, 1, 8, 8))
    with pytest.raises(ValueError, match=r"^real images: images must be rounded uint8"):
        measure_all(context, ["fid"])


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"subjects": {}}, "Context.subjects is empty"),
        ({"subjects": {"data": Subject()}}, "names 'data', which stands for the data"),
        (
            {"subjects": {"a": Subject()}, "num_samples": 0},
            "Context.num_samples is 0; it must be at least 1",
        ),
        ({"subjects": {"a": Subject()}, "batch_size": 0}, "Context.batch_size is 0"),
        ({"subjects": {"a": Subject()}, "workers": 0}, "Context.workers is 0"),
    ],
)
def test_contexts_that_cannot_be(arguments: dict, expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        Context(**arguments)
