"""Latency with a clock that only the runs move, so that every number is known."""

from typing import Any

import pytest
import torch
from torch import nn

from eval import latency
from eval.latency import device_name, interleave, speedup, summary
from eval.run import measure_all
from eval.types import Context, LatencyOptions, Subject

OPTIONS: dict[str, Any] = {"batch_size": 4, "rounds": 3, "sampling_rounds": 0, "num_threads": None}


def measured(context: Context) -> dict[str, dict[str, Any]]:
    return measure_all(context, ["latency"])


class Clock:
    """Stands still until a run moves it."""

    def __init__(self) -> None:
        self.now = 0.0
        self.log: list[str] = []

    def __call__(self) -> float:
        return self.now

    def run(self, name: str, seconds: float):
        def call(*_: object) -> None:
            self.log.append(name)
            self.now += seconds

        return call


def timed(clock: Clock, rounds: int, warmup: int = 0) -> dict[str, list[float]]:
    runs = {"a": clock.run("a", 4.0), "b": clock.run("b", 1.0), "c": clock.run("c", 2.0)}
    return interleave(runs, rounds=rounds, min_run_s=0.5, warmup=warmup, num_threads=1, clock=clock)


def test_known_times_give_known_ratios() -> None:
    times = timed(Clock(), rounds=6)
    assert times == {"a": [4.0] * 6, "b": [1.0] * 6, "c": [2.0] * 6}
    assert speedup(times["a"], times["b"]) == (4.0, [4.0, 4.0], 1 - 2 / 64)


def test_subjects_take_turns_and_each_is_first_once() -> None:
    clock = Clock()
    timed(clock, rounds=3)
    turns = [name for i, name in enumerate(clock.log) if i == 0 or clock.log[i - 1] != name]
    assert turns == list("abc" + "bca" + "cab")


def test_warm_up_comes_before_the_first_round() -> None:
    clock = Clock()
    timed(clock, rounds=1, warmup=2)
    assert clock.log[:6] == list("aabbcc")


def test_threads_are_set_while_timing_and_restored() -> None:
    before = torch.get_num_threads()
    seen = []
    interleave(
        {"a": lambda: seen.append(torch.get_num_threads())},
        rounds=1,
        min_run_s=1e-9,
        warmup=0,
        num_threads=before + 1,
    )
    assert set(seen) == {before + 1}
    assert torch.get_num_threads() == before


def test_speedup_is_the_median_of_ratios_within_a_round() -> None:
    # A machine that gets four times slower on the way does not touch the ratio of a round.
    reference, times = [2.0, 4.0, 8.0], [1.0, 2.0, 4.0]
    assert speedup(reference, times)[0] == 2.0
    assert speedup([2.0, 4.0, 12.0], times)[:2] == (2.0, [2.0, 3.0])


def test_summary_by_hand() -> None:
    result = summary([1.0, 2.0, 3.0, 4.0, 5.0], images=6)
    assert result == {
        "median_s": 3.0,
        "iqr_s": 2.0,
        "spread": pytest.approx(2 / 3),
        "min_s": 1.0,
        "max_s": 5.0,
        "runs": 5,
        "images_per_s": 2.0,
    }


def subjects(clock: Clock, sampling: bool = True) -> dict[str, Subject]:
    def build(name: str, seconds: float) -> Subject:
        sample = clock.run(f"{name} samples", 10 * seconds) if sampling else None
        return Subject(clock.run(name, seconds), sample, nn.Linear(1, 1).eval())  # type: ignore[arg-type]

    return {"dense": build("dense", 3.0), "slim": build("slim", 1.0)}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    plain = latency.interleave
    monkeypatch.setattr(latency, "interleave", lambda runs, **options: plain(runs, **options, clock=clock))
    return clock


def test_measured_by_subject(clock: Clock) -> None:
    sizes: list[int] = []
    options = LatencyOptions(batch_size=6, rounds=7, sampling_rounds=2, num_threads=1)
    context = Context(subjects(clock), call=lambda n: sizes.append(n) or {}, latency=options)
    result = measured(context)
    assert sizes == [6]
    assert result["dense"]["speedup_call"] == result["dense"]["speedup_sampling"] == 1.0
    assert result["slim"]["speedup_call"] == result["slim"]["speedup_sampling"] == 3.0
    assert result["slim"]["speedup_call_ci95"] == [3.0, 3.0]
    assert result["slim"]["speedup_sampling_coverage"] == 0.5  # two rounds are too few, and that is said
    call, sampling = result["slim"]["call"], result["slim"]["sampling"]
    assert (call["median_s"], call["runs"], call["batch_size"], call["images_per_s"]) == (1.0, 7, 6, 6.0)
    assert (sampling["median_s"], sampling["runs"], sampling["batch_size"]) == (10.0, 2, 6)
    assert (call["dtype"], call["num_threads"]) == ("float32", 1)
    assert (call["warmup"], sampling["warmup"]) == (2, 0)
    assert call["device"] == device_name(torch.device("cpu")) != ""


def test_sampling_that_is_not_asked_or_not_possible(clock: Clock) -> None:
    def result(sampling: bool, able: bool) -> dict:
        options = LatencyOptions(**OPTIONS | {"rounds": 1, "sampling_rounds": int(sampling)})
        return measured(Context(subjects(clock, able), call=lambda n: {}, latency=options))["slim"]

    assert result(sampling=True, able=True)["sampling"] is not None
    assert result(sampling=False, able=True)["sampling"] is None
    assert result(sampling=True, able=False)["speedup_sampling"] is None


def test_modes_and_batch_sizes_are_rows(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    compiled = lambda predict, call, device: lambda: (predict(call), clock.run("", 0)())  # noqa: E731
    monkeypatch.setitem(latency.MODES, "compiled", compiled)
    options = LatencyOptions(
        **OPTIONS | {"modes": ["eager", "compiled", "cuda_graphs"], "batch_sizes": [1, 8], "rounds": 7}
    )
    context = Context(subjects(clock, sampling=False), call=lambda n: sizes.append(n) or {}, latency=options)
    result = measured(context)
    rows = result["slim"]["latency_rows"]
    named = [(row["mode"], row["batch_size"]) for row in rows]
    assert named[:2] == [("eager", 1), ("eager", 8)]
    assert named[2:5] == [("compiled", 4), ("compiled", 1), ("compiled", 8)]
    assert [row["skipped"] for row in rows[:5]] == [None] * 5
    assert [(row["median_s"], row["images_per_s"], row["speedup_call"]) for row in rows[:2]] == [
        (1.0, 1.0, 3.0),
        (1.0, 8.0, 3.0),
    ]
    assert rows[0]["speedup_call_ci95"] == [3.0, 3.0]
    assert [row["skipped"] for row in rows[5:]] == ["CUDA graphs need a CUDA GPU, and the models are on cpu"]
    assert result["dense"]["latency_rows"][0]["speedup_call"] == 1.0
    assert result["slim"]["call"]["batch_size"] == 4


def test_a_mode_that_fails_is_left_out_with_its_reason(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("no compiler here\nand more")

    monkeypatch.setitem(latency.MODES, "compiled", fails)
    options = LatencyOptions(**OPTIONS | {"modes": ["compiled"]})
    context = Context(subjects(clock, sampling=False), call=lambda n: {}, latency=options)
    (row,) = measured(context)["slim"]["latency_rows"]
    assert row == {"mode": "compiled", "batch_size": 4, "skipped": "RuntimeError: no compiler here"}


@pytest.mark.slow
def test_a_compiled_call_is_the_same_call() -> None:
    layer = nn.Linear(3, 2).eval()
    inputs = torch.ones(1, 3)
    try:
        run = latency.MODES["compiled"](lambda call: layer(call["x"]), {"x": inputs}, torch.device("cpu"))
    except Exception as error:
        pytest.skip(f"torch.compile does not work here: {error}")
    with torch.no_grad():
        assert torch.allclose(run(), layer(inputs), atol=1e-6)


def test_without_further_rows_there_are_none(clock: Clock) -> None:
    options = LatencyOptions(**OPTIONS)
    result = measured(Context(subjects(clock, sampling=False), call=lambda n: {}, latency=options))
    assert "latency_rows" not in result["slim"]


def test_the_heap_keeps_its_pages_while_timing(monkeypatch: pytest.MonkeyPatch) -> None:
    from eval import steady

    calls: list[tuple[int, int]] = []
    fake = (lambda option, value: calls.append((option, value)) or 1, lambda pad: calls.append((0, pad)) or 1)
    monkeypatch.setattr(steady, "_allocator", lambda: fake)
    with steady.steady_heap() as kept:
        assert kept
        assert dict(calls) == steady.KEPT
    assert dict(calls) == {**steady.USUAL, 0: 0}
    monkeypatch.setattr(steady, "_allocator", lambda: None)
    with steady.steady_heap() as kept:
        assert not kept


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"rounds": 0}, "LatencyOptions.rounds is 0; it must be at least 1"),
        ({"sampling_rounds": -1}, "LatencyOptions.sampling_rounds is -1; it must be at least 0"),
        ({"num_threads": 0}, "LatencyOptions.num_threads is 0"),
    ],
)
def test_options_that_cannot_be(options: dict, expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        LatencyOptions(**OPTIONS | options)


def test_without_options_there_is_nothing_to_measure_by(clock: Clock) -> None:
    with pytest.raises(ValueError, match=r"metric 'latency' needs Context\.latency, which is None; give it"):
        measure_all(Context(subjects(clock), call=lambda n: {}), ["latency"])
