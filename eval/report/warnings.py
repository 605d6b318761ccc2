"""What a reader must know before trusting the numbers."""

from __future__ import annotations

from eval.report import fmt
from eval.report.data import RunData
from eval.report.figures import frechet_name, is_fraction, reached, speedup

SMALL_N = 10_000  # below this the bias of the Fréchet distance at finite N matters
TARGET_TOLERANCE = 0.01
SPEEDUP_SHARE = 0.9  # measured speed-up that is expected, as a share of the MACs ratio
NOISY_SPREAD = 0.1  # interquartile range over median from which a latency counts as noisy


def warnings(run: RunData) -> list[str]:
    """Return what a reader must know before trusting the numbers."""
    found = list(run.data.get("warnings") or [])
    if run.dropped:
        found.append(
            f"{run.dropped} value(s) in data.json were not finite (NaN or infinity) and are left out."
        )
    count = run.metric(run.reference, "frechet_num_generated")
    if count and count < SMALL_N:
        found.append(
            f"Small N: distances are from {count:,.0f} samples. The Fréchet distance is biased upward at small N; "
            "compare it only with values from the same N, the same features and the same real images."
        )
    if run.metric(run.reference, "frechet_warning"):
        found.append(f"Fréchet distance: {run.metric(run.reference, 'frechet_warning')}.")
    found += _missed(run)
    macs, fast = run.ratio(run.final, "macs"), speedup(run, run.final)
    if macs and fast is not None and fast < SPEEDUP_SHARE / macs:
        found.append(
            f"Speed-up below the arithmetic: {fmt.times(fast)} measured, {fmt.times(1 / macs)} by MACs. "
            "Fixed costs (memory traffic, small kernels, layers that are not pruned) eat the rest."
        )
    found += _noisy(run)
    found += _not_recovered(run)
    if run.final and len(run.subjects) == 2 and run.metrics:
        found.append(
            f"No recovery: the {run.final} figures are straight after the cut, without any training."
        )
    return found


def _missed(run: RunData) -> list[str]:
    """Warn of a target that was not hit within the tolerance."""
    reason = "the nearest plan that round_to, minimum units and limits allow"
    for key, name in (("macs", "MACs"), ("params", "parameters")):
        asked, value = run.entry("asked").get(key), reached(run, key)
        if is_fraction(asked) and asked and value is not None and abs(value / asked - 1) > TARGET_TOLERANCE:
            what = f"{fmt.percent(asked)} of the {name} were asked, {fmt.percent(value)} are left"
            return [f"Target missed: {what} ({reason})."]
    return [f"Target missed; this is {reason}."] if run.entry("got").get("hit") is False else []


def _not_recovered(run: RunData) -> list[str]:
    """Warn of training that made things worse."""
    if len(run.subjects) < 3 or run.final is None:
        return []
    before = run.subjects[-2]
    worse = []
    for key, name in (("frechet", frechet_name(run)), ("excess_error", "excess error")):
        was, now = run.metric(before, key), run.metric(run.final, key)
        if was is not None and now is not None and now > was:
            worse.append(f"the {name} rose from {fmt.number(was)} to {fmt.number(now)}")
    if not worse:
        return []
    return [
        f"Training back made it worse: {' and '.join(worse)} from {before} to {run.final}. More steps "
        "(recover.steps) or a lower learning rate may help; else use the pruned model as it is."
    ]


def _noisy(run: RunData) -> list[str]:
    """Warn of latencies whose spread is large."""
    spread = []
    for subject in run.subjects:
        for which in ("call", "sampling"):
            record = run.metric(subject, which)
            if record and record["iqr_s"] and record["iqr_s"] > NOISY_SPREAD * record["median_s"]:
                share = fmt.percent(record["iqr_s"] / record["median_s"], 0)
                spread.append(f"{subject}, {'one call' if which == 'call' else 'sampling'}: {share}")
    return (
        [f"Noisy timing: interquartile range over median is large ({'; '.join(spread)})."] if spread else []
    )
