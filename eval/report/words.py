"""What a run says in plain words: headline, verdict, warnings and how it was measured."""

from __future__ import annotations

from typing import Any

from eval.report import fmt
from eval.report.load import Run

LEVEL = 0.95
LEAST_LEVEL = 0.9  # an interval that covers less is not shown
SMALL_N = 10_000  # below this the bias of the Fréchet distance at finite N matters
TARGET_TOLERANCE = 0.01
SPEEDUP_SHARE = 0.9  # measured speed-up that is expected, as a share of the MACs ratio
NOISY_SPREAD = 0.1  # interquartile range over median from which a latency counts as noisy
WORDS = {"macs": "MACs", "params": "parameters", "ratio": "prunable parameters removed", "hit": "target hit"}


def frechet_name(run: Run) -> str:
    """Return the name of the Fréchet distance as measured (never FID unless the evaluation says so)."""
    for subject in run.subjects:
        if run.metric(subject, "frechet_name"):
            return run.metric(subject, "frechet_name")
    return "Fréchet distance"


def reached(run: Run, key: str) -> float | None:
    """Return the share of MACs or parameters that is left, as measured, else as planned."""
    measured = run.ratio(run.final, key)
    if measured is not None:
        return measured
    planned = run.got.get(key, run.got.get(f"{key}_ratio"))
    return planned if _is_fraction(planned) else None


def speedup(run: Run, subject: str | None, which: str = "call") -> float | None:
    """Return the measured speed-up of `subject` over the reference, or None."""
    if subject == run.reference:
        return None
    given = run.metric(subject, f"speedup_{which}")
    own, base = run.metric(subject, which), run.metric(run.reference, which)
    return given if given is not None else base["median_s"] / own["median_s"] if own and base else None


def speedup_interval(run: Run, subject: str | None, which: str = "call") -> str:
    """Return the interval of a speed-up with its true coverage; nothing if the rounds are too few for one."""
    interval = run.metric(subject, f"speedup_{which}_ci95")
    coverage = run.metric(subject, f"speedup_{which}_coverage")
    if not interval or (coverage is not None and coverage < LEAST_LEVEL):
        return ""
    level = min(LEVEL, coverage) if coverage is not None else LEVEL
    return f"{fmt.percent(level, 0)} {fmt.times(interval[0])} to {fmt.times(interval[1])}"


def headline(run: Run) -> str:
    """Return the run in one line of numbers."""
    parts = []
    macs, params = reached(run, "macs"), reached(run, "params")
    if macs is not None:
        parts.append(f"{fmt.percent(macs)} of the MACs")
    elif params is not None:
        parts.append(f"{fmt.percent(params)} of the parameters")
    fast = speedup(run, run.final)
    if fast is not None:
        parts.append(f"calls {fmt.times(fast)} as fast")
    worse = run.ratio(run.final, "frechet")
    if worse is not None:
        parts.append(f"{fmt.times(worse)} the Fréchet distance of {run.reference}")
    return ", ".join(parts)


def verdict(run: Run) -> list[str]:
    """Return the verdict as sentences with numbers and intervals."""
    found = [sentence for sentence in (_size(run), _speed(run), *_quality(run)) if sentence]
    return found if run.metrics else [*found, "Nothing has been measured: the run has no evaluation yet."]


def _size(run: Run) -> str:
    macs, params = reached(run, "macs"), reached(run, "params")
    left = []
    for key, value in (("macs", macs), ("params", params)):
        if value is not None:
            asked = run.asked.get(key)
            wish = f" (asked: {fmt.percent(asked)})" if _is_fraction(asked) else ""
            left.append(f"{fmt.percent(value)} of the {WORDS[key]}{wish}")
    if not left:
        return ""
    return f"The {f'{run.final} model' if run.final else 'plan'} keeps {' and '.join(left)}."


def _speed(run: Run) -> str:
    fast, whole = speedup(run, run.final), speedup(run, run.final, "sampling")
    call = run.metric(run.final, "call")
    if fast is None or call is None:
        return ""
    base = run.metric(run.reference, "call")
    batch = f" at batch {call['batch_size']}" if call.get("batch_size") else ""
    parts = [f"One denoiser call{batch} is {fmt.times(fast)} as fast"]
    if interval := speedup_interval(run, run.final):
        parts[0] += f" ({interval})"
    if whole is not None:
        interval = speedup_interval(run, run.final, "sampling")
        parts.append(f"a whole sampling run {fmt.times(whole)}{f' ({interval})' if interval else ''}")
    if base:
        parts.append(
            f"median times of a call {fmt.seconds(base['median_s'])} → {fmt.seconds(call['median_s'])}"
        )
    return "; ".join(parts) + "."


def _quality(run: Run) -> list[str]:
    own, base = run.metric(run.final, "frechet"), run.metric(run.reference, "frechet")
    if own is None:
        return []

    def said(subject: str, value: float) -> str:
        interval = run.metric(subject, "frechet_ci95")
        return fmt.number(value) + (f" (95{fmt.THIN}% interval {fmt.span(interval)})" if interval else "")

    sentences = [f"Its {frechet_name(run)} is {said(run.final or '', own)}"]
    if base is not None:
        sentences[0] += f" against {said(run.reference, base)} for {run.reference}, {fmt.times(own / base)}"
        sentences[0] += _resolved(run, own, base) if base else ""
    sentences[0] += "."
    between = [s for s in run.subjects[1:-1] if run.metric(s, "frechet") is not None]
    for subject in between:
        sentences.append(
            f"The {subject} model, before that, is at {said(subject, run.metric(subject, 'frechet'))}."
        )
    return sentences


def _resolved(run: Run, own: float, base: float) -> str:
    """Tell whether final subject and reference differ, by the paired interval of their ratio if there is one."""
    ratio = run.metric(run.final, "frechet_ratio_ci95")
    a, b = run.metric(run.final, "frechet_ci95"), run.metric(run.reference, "frechet_ci95")
    if ratio:
        apart, how = not ratio[0] <= 1 <= ratio[1], f" (95{fmt.THIN}% {fmt.span(ratio)})"
    elif a and b:
        apart, how = a[1] < b[0] or b[1] < a[0], ""
    else:
        return "; no interval was measured, so do not read small differences"
    if not apart:
        return f"{how}: this run does not tell the two apart"
    return f"{how}: {'worse' if own > base else 'better'} by more than chance"


def warnings(run: Run) -> list[str]:
    """Return what a reader must know before trusting the numbers."""
    found = list(run.warnings)
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


def _missed(run: Run) -> list[str]:
    """Warn of a target that was not hit within the tolerance."""
    reason = "the nearest plan that round_to, minimum units and limits allow"
    for key in ("macs", "params"):
        asked, value = run.asked.get(key), reached(run, key)
        if _is_fraction(asked) and asked and value is not None and abs(value / asked - 1) > TARGET_TOLERANCE:
            what = f"{fmt.percent(asked)} of the {WORDS[key]} were asked, {fmt.percent(value)} are left"
            return [f"Target missed: {what} ({reason})."]
    return [f"Target missed; this is {reason}."] if run.got.get("hit") is False else []


def _not_recovered(run: Run) -> list[str]:
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


def _noisy(run: Run) -> list[str]:
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


def notes(run: Run) -> list[str]:
    """Return how the figures were measured and what they do not say."""
    final = run.final or run.reference
    found = _frechet_notes(run)
    if run.metric(final, "kernel") is not None:
        found.append(
            "Kernel distance: unbiased polynomial-kernel MMD² on the same features, mean ± standard deviation over "
            "subsets. It may be slightly negative. The ± is the spread of subsets, not a confidence interval."
        )
    if run.metric(final, "ssim") is not None:
        found.append(
            f"SSIM and MSE compare each image with the {run.reference} model's from the same noise. They measure "
            "how little has changed, not how good the images are."
        )
    if run.metric(final, "denoising_error_mean") is not None or run.metric(final, "denoising_error"):
        found.append(
            "Denoising error: mean squared error to the training target on held-out images, same image and noise in "
            f"every timestep bucket. Excess error: mean ‖ε − ε_{run.reference}‖² / mean ‖ε_{run.reference}‖²."
        )
    if run.metric(run.reference, "macs") is not None:
        method = run.metric(run.reference, "macs_method") or "counted while one call runs, FLOPs / 2"
        found.append(f"MACs: {method}. Memory: weights and activations of that call.")
    call = run.metric(final, "call")
    if call:
        facts = [
            fmt.plural(call[k], w) for k, w in (("runs", "round"), ("num_threads", "thread")) if call.get(k)
        ]
        facts += [str(call[k]) for k in ("dtype", "device") if call.get(k)]
        found.append(
            "Latency: medians of rounds in which all models take turns, in one process"
            + (f" ({', '.join(facts)})" if facts else "")
            + ". A speed-up is the median of the rounds' ratios, which on a busy machine is not quite the ratio of the "
            "medians. Trust the ratio; the seconds belong to this machine."
        )
    return found + _coverage_notes(run) + run.notes


def _coverage_notes(run: Run) -> list[str]:
    """Return why an interval of a speed-up is missing or covers less than 95 %."""
    short = [
        name
        for which, name in (("call", "one call"), ("sampling", "sampling"))
        if (coverage := run.metric(run.final, f"speedup_{which}_coverage")) is not None and coverage < LEVEL
    ]
    if not short:
        return []
    return [
        f"Few rounds were timed for the speed-up of {' and '.join(short)}. The range of n rounds covers the median "
        f"with 1 − 2¹⁻ⁿ; below {fmt.percent(LEAST_LEVEL, 0)} (four rounds or fewer) no interval is shown, and with "
        "five the percentage before it is what it covers. Six rounds or more (evaluate.latency.runs, "
        f"sampling_runs) give {fmt.percent(LEVEL, 0)}."
    ]


def _frechet_notes(run: Run) -> list[str]:
    """Return what the Fréchet distance and its intervals are."""
    found = []
    name = frechet_name(run)
    base = run.metrics.get(run.reference, {})
    if base.get("frechet") is not None:
        facts = [str(base[k]) for k in ("frechet_mode",) if base.get(k)]
        counts = (("frechet_num_generated", "generated"), ("frechet_num_real", "real"))
        facts += [f"{base[k]:,.0f} {word} images" for k, word in counts if base.get(k)]
        facts_text = ", ".join(facts)
        found.append(
            f"{name}{f' ({facts_text})' if facts else ''}: distance of two Gaussians fitted to features of "
            "generated and of held-out real images; lower is better."
            + (
                ""
                if "FID" in name
                else " These are not Inception features: it is not FID, nor comparable with it."
            )
        )
    if run.metric(run.final, "frechet_ratio_ci95"):
        found.append(
            "Intervals of the Fréchet distance: bootstrap over generated images. The interval of the ratio pairs "
            "images of the same noise, so it is the one to judge a difference by."
        )
    return found


def facts(values: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the entries of `asked` or `got` as label and text; empty and nested values are left out."""
    found = []
    for key, value in values.items():
        name = key.removesuffix("_ratio") if key != "ratio" else key
        if isinstance(value, bool):
            text = "yes" if value else "no"
        elif isinstance(value, (int, float)):
            share = name in WORDS and _is_fraction(value)
            text = fmt.percent(value) if share else fmt.quantity(value) if value >= 1e4 else f"{value:g}"
        elif isinstance(value, str):
            text = value if key == "criterion" else value.replace("_", " ")
        else:
            continue
        found.append((WORDS.get(name, key.replace("_", " ")), text))
    return found


def _is_fraction(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= 1
