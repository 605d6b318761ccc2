"""The tables of the study's page, in Markdown, from the published rows alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from study.contrasts import Row, arms, by_set, omega_contrasts, primary, recovered, told
from study.facts import correlations
from study.inference import MIN_SETS, geometric_mean, paired, verdicts
from study.subjects import DECIDING, DEFAULT, LEFT_AFTER, LOOKING, SUBJECTS

BEGIN, END = "<!-- begin: written by study_sinks.py publish -->", "<!-- end -->"


def fill(page: str, rows: Sequence[Row], facts: Mapping[str, Any], bootstraps: Mapping[str, Any]) -> str:
    """Return `page` with what stands between its marks replaced by the tables."""
    start, end = page.index(BEGIN) + len(BEGIN), page.index(END)
    sections = (
        _primary(rows, bootstraps),
        _errors(rows, "Excess error × 10³ in the primary setting (equal shares, least squares)", DECIDING),
        _errors(rows, "The same, compensated by folding alone", DECIDING, compensation="fold"),
        _errors(rows, "The same in global allocation, least squares, sets 0 to 2", LOOKING, scope="global"),
        _recovered(rows),
        _step_zero(facts),
        _omega(rows),
        _heads(facts),
        _timestep_share(facts),
    )
    body = "\n\n".join(section for section in sections if section)
    return f"{page[:start]}\n\n{body}\n\n{page[end:]}"


def _table(title: str, head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    body = [f"| {' | '.join(line)} |" for line in lines]
    if not body:
        return ""
    return "\n".join([f"**{title}**", "", f"| {' | '.join(head)} |", "|" + "---|" * len(head), *body])


def _primary(rows: Sequence[Row], bootstraps: Mapping[str, Any]) -> str:
    found = primary(rows)
    lines = []
    for contrast, verdict in zip(found, verdicts(found), strict=True):
        ends = bootstraps.get(contrast.model)
        crossed = "" if ends is None else " to ".join(f"{100 * np.expm1(x):+.1f}" for x in ends)
        lines.append(
            [
                f"`{contrast.model}`",
                f"`{contrast.second}`",
                told(contrast),
                crossed,
                f"{contrast.p:.1g}",
                str(contrast.sets),
                f"**{verdict}**",
            ]
        )
    head = ["model", "best rival", "default against it, % (95 %)", "bootstrap", "p", "sets", "verdict"]
    return _table("Primary contrasts", head, lines)


def _errors(rows: Sequence[Row], title: str, sets: Iterable[int], **where: Any) -> str:
    """Return criteria by models: the geometric mean of the errors and how the default stands to it."""
    sets = list(sets)
    ours = {model: by_set(rows, model, DEFAULT[0], sets, omega=DEFAULT[1], **where) for model in SUBJECTS}
    models = [model for model in SUBJECTS if len(ours[model]) >= MIN_SETS]
    names = {arm for model in models for arm in arms(rows, model)}
    values: dict[tuple[str, str], list[str]] = {}
    first: dict[tuple[str, str], float] = {}
    for arm in names:
        cells = []
        for model in models:
            errors = by_set(rows, model, arm[0], sets, omega=arm[1], **where)
            if len(errors) < MIN_SETS:
                cells.append("")
                continue
            mean = 1000 * geometric_mean(errors.values())
            first.setdefault(arm, mean)
            contrast = None if arm == DEFAULT else paired(model, "", "", ours[model], errors)
            cells.append(f"{mean:.3g}" + (f"; {told(contrast)}" if contrast else ""))
        if any(cells):
            values[arm] = cells
    order = sorted(values, key=lambda arm: (arm != DEFAULT, first[arm], arm))
    lines = [[f"`{c}`" if o == "off" else f"`{c}`, ω {o}", *values[c, o]] for c, o in order]
    return _table(f"{title}; default against it, % (95 %)", ["criterion", *(f"`{m}`" for m in models)], lines)


def _recovered(rows: Sequence[Row]) -> str:
    lines = []
    for ratio in LEFT_AFTER:
        fields = ("frechet", "frechet_before", "excess_error")
        found = zip(*(recovered(rows, ratio, field) for field in fields), strict=True)
        lines += [
            [f"`{c[0].model}`", f"{ratio:.0%}", f"`{c[0].second}`", *(told(one) for one in c), str(c[0].sets)]
            for c in found
        ]
    head = [
        "model",
        "MACs left",
        "against",
        "Fréchet distance, %",
        "before training, %",
        "excess error, %",
        "sets",
    ]
    return _table("After equal training back: the default against the others (95 %)", head, lines)


def _step_zero(facts: Mapping[str, Any]) -> str:
    lines = []
    for model, found in facts.items():
        known = found.get("precondition")
        if known is None:
            continue
        ratio = (found.get("pretest") or {}).get("ratio_median")
        phi = known["stability"]
        lines.append(
            [
                f"`{model}`",
                str(known["heads"]),
                f"{known['strong_heads']:.0%}",
                f"{known['largest_relative_mass']:.1f}",
                f"{known['score_changed']:.1%}",
                "" if phi is None else f"{phi[1]:.2f}",
                "" if ratio is None else f"{ratio:.2f}",
                "yes" if known["testable"] else "no",
            ]
        )
    head = [
        "model",
        "heads",
        "with a key above 0.3",
        "largest key (1 = uniform)",
        "ω changes the median score by",
        "median φ",
        "error at a sink moves the output, × elsewhere",
        "can test the claim",
    ]
    return _table("Step 0 and pre-test", head, lines)


def _omega(rows: Sequence[Row]) -> str:
    lines = [[f"`{c.model}`", c.first, c.second, told(c), f"{c.p:.2g}"] for c in omega_contrasts(rows)]
    head = ["model", "row weights", "against", "change of the error, % (95 %)", "p, uncorrected"]
    return _table("Row weights (λ_u, λ_s) of `probe_obs`, real and permuted", head, lines)


def _heads(facts: Mapping[str, Any]) -> str:
    known = {model: correlations(found["heads"]) for model, found in facts.items() if found.get("heads")}
    if not known:
        return ""
    scores = list(next(iter(known.values())))

    def cell(found: Mapping[str, Any]) -> str:
        low, high = found["given_fluctuation_ci95"]
        return f"{found['across_layers']:.2f}; {found['given_fluctuation']:+.2f} ({low:+.2f} to {high:+.2f})"

    lines = [[f"`{score}`", *(cell(found[score]) for found in known.values())] for score in scores]
    title = (
        "Rank correlation with mean ablation of each head: over all layers; within layers given `fluctuation`"
    )
    return _table(title, ["score", *(f"`{model}`" for model in known)], lines)


def _timestep_share(facts: Mapping[str, Any]) -> str:
    lines = [
        [f"`{model}`", *(f"{share[m]['median']:.1%} ({share[m]['largest']:.1%})" for m in share)]
        for model, found in facts.items()
        if (share := found.get("timestep-share"))
    ]
    title = (
        "Part of the consumers' error that a bias by timestep could take away: median of the groups (largest)"
    )
    return _table(title, ["model", "after folding", "after least squares"], lines)
