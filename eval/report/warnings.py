"""What a reader must know before trusting the numbers."""

from __future__ import annotations

from collections.abc import Iterator

from eval.report import fmt
from eval.report.data import RunData

SMALL_N = 10_000  # below this the bias of the Fréchet distance at finite N matters
SPEEDUP_SHARE = 0.9  # measured speed-up that is expected, as a share of the MACs ratio
MEASURED_WITHIN = 0.03
"""A target of time or memory is met if what is measured exceeds it by no more than this, relative."""
NOISY_SPREAD = 0.1  # interquartile range over median from which a latency counts as noisy


def warnings(run: RunData) -> list[str]:
    """Return what a reader must know before trusting the numbers."""
    parts = (_frechet(run), _missed(run), _slow(run), _noisy(run), _not_recovered(run))
    return [*(run.data.get("warnings") or []), *(text for part in parts for text in part)]


def _frechet(run: RunData) -> Iterator[str]:
    count, why = (run.metric(run.reference, f"frechet_{key}") for key in ("num_generated", "warning"))
    if count and count < SMALL_N:
        yield (
            f"Small N: distances are from {count:,.0f} samples. The Fréchet distance is biased upward at small N; "
            "compare it only with values from the same N, the same features and the same real images."
        )
    if why:
        yield f"Fréchet distance: {why}."
    if line := run.metric(run.reference, "frechet_infinity_warning"):
        yield f"Fréchet distance at N = ∞: {line}."


def _missed(run: RunData) -> Iterator[str]:
    if targets := run.entry("targets").get("targets"):
        for row in targets.values():
            if row["measured"] > row["goal"] * (1 + MEASURED_WITHIN):
                said = row["said"].get("measured") or row["said"]["predicted"]
                yield f"Target missed: {row['asked']} was asked, {said} was measured of the plan."
        return
    reason = "the nearest plan that round_to, minimum units and limits allow"
    tolerance = run.entry("asked").get("tolerance")
    for key, name in (("macs", "MACs"), ("params", "parameters")) if tolerance else ():
        asked, left = run.entry("asked").get(key), run.left(key)
        if asked and left is not None and abs(left / asked - 1) > tolerance:
            what = f"{fmt.percent(asked)} of the {name} were asked, {fmt.percent(left)} are left"
            yield f"Target missed: {what} ({reason})."
            return
    if run.entry("got").get("hit") is False:
        yield f"Target missed; this is {reason}."


def _slow(run: RunData) -> Iterator[str]:
    macs, fast = run.ratio(run.final, "macs"), run.speedup(run.final)
    if macs and fast is not None and fast < SPEEDUP_SHARE / macs:
        yield (
            f"Speed-up below the arithmetic: {fmt.times(fast)} measured, {fmt.times(1 / macs)} by MACs. "
            "Fixed costs (memory traffic, small kernels, layers that are not pruned) eat the rest."
        )


def _noisy(run: RunData) -> Iterator[str]:
    spread = []
    for subject in run.subjects:
        for which, name in (("call", "one call"), ("sampling", "sampling")):
            found = run.metric(subject, which)
            if found and found["iqr_s"] > NOISY_SPREAD * found["median_s"]:
                spread.append(f"{subject}, {name}: {fmt.percent(found['iqr_s'] / found['median_s'], 0)}")
    if spread:
        yield f"Noisy timing: interquartile range over median is large ({'; '.join(spread)})."


def _not_recovered(run: RunData) -> Iterator[str]:
    if len(run.subjects) == 2:
        yield f"No recovery: the {run.final} figures are straight after the cut, without any training."
        return
    before, worse = run.subjects[-2], []
    for key, name in (("frechet", run.frechet_name), ("excess_error", "excess error")):
        was, now = run.metric(before, key), run.metric(run.final, key)
        if was is not None and now is not None and now > was:
            worse.append(f"the {name} rose from {fmt.number(was)} to {fmt.number(now)}")
    if worse:
        yield (
            f"Training back made it worse: {' and '.join(worse)} from {before} to {run.final}. More steps "
            "(recover.steps) or a lower learning rate may help; else use the pruned model as it is."
        )
