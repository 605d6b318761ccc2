"""Power: for each measure the smallest difference that this run could have told apart, and the size that 1 % takes."""

from __future__ import annotations

from eval.report import fmt
from eval.report.data import RunData
from eval.report.html import Section, template

PLACE = 52
SUFFIX = "_detectable"
NAMES = {
    "kernel": "Kernel distance",
    "frechet_infinity": "Fréchet distance at N = ∞",
    "fd_dinov2": "FD-DINOv2",
    "cmmd": "CMMD",
    "clip_score": "CLIP score",
    "denoising_error_mean": "Denoising error",
    "precision": "Precision",
    "recall": "Recall",
    "density": "Density",
    "coverage": "Coverage",
}
APART = {
    "pair_pixels": "Pixels' distance, same noise",
    "pair_features": "Features' distance, same noise",
    "lpips": "LPIPS, same noise",
    "mse": "MSE, same noise",
    "waveform_error": "Waveform error, same noise",
    "spectral_error": "Spectral error, same noise",
    "excess_error": "Excess error",
}
"""Distances to the reference itself: what is told apart is a change of their own value."""

BODY = template(
    """
<p class="soft">The smallest true difference that {{ final }} against {{ reference }} would have shown in four of five
runs of this size (two-sided 5 %), and the size at which that is 1 %.</p>
<div class="scroll"><table>
<thead><tr><th scope="col"></th><th scope="col">size</th><th scope="col">told apart from</th>
<th scope="col">found</th><th scope="col">size for 1{{ thin }}%</th></tr></thead>
<tbody>
{% for name, size, share, found, needed in rows %}
<tr><th scope="row">{{ name }}</th><td>{{ size }}</td><td>{{ share }}</td><td>{{ found }}</td><td>{{ needed }}</td></tr>
{% endfor %}
</tbody></table></div>
{% if apart %}
<p class="detail">Distances to {{ reference }} itself (same noise, excess error) have no difference to it: there the
share is of their own value, the change that another run of this size would show.</p>
{% endif %}
"""
)


def section(run: RunData) -> Section | None:
    """Show the table; None if nothing was measured that has a power."""
    named = {"frechet": run.frechet_name, **NAMES, **APART}
    keys = [key for key in named if run.metric(run.final, f"{key}{SUFFIX}") is not None]
    if not keys:
        return None
    rows = [_row(run, key, run.metric(run.final, f"{key}_name") or named[key]) for key in keys]
    body = BODY(
        rows=rows,
        final=run.final,
        reference=run.reference,
        apart=any(key in APART for key in keys),
        thin=fmt.THIN,
    )
    return Section(body, "What this run could tell apart", link="Power")


def _row(run: RunData, key: str, name: str) -> tuple[str, ...]:
    """Return name, size, smallest difference, what was found, and the size for 1 %, as texts."""
    share, needed = (run.metric(run.final, f"{key}{what}") for what in (SUFFIX, "_size_1pct"))
    size = run.metric(run.final, f"{key}_samples")
    found = fmt.MISSING
    if key not in APART and (ratio := run.ratio(run.final, key)) is not None:
        found = f"{'+' if ratio >= 1 else '−'}{fmt.percent(abs(ratio - 1))}"
    return name, f"{size:,}", f"±{fmt.THIN}{fmt.percent(share)}", found, f"{needed:,}"
