"""Observes subjects, which is expensive, and computes metrics from what was observed, which is cheap.

The two may speak through files, so that a subject is observed once for any number of comparisons.

An observation is a file of this package with a function ``observe(context, name, seen)``; ``seen`` is what the subject
showed before, and ``NEEDS`` names what the context and the subject must have (``NEEDS_DATA``: for the data). A metric
is a file with a function ``compute(context, seen)``; ``seen`` holds what every subject and the data showed. It says in
``READS`` which observations of each subject it is computed from, in ``READS_DATA`` which of the data, and in
``MIN_IMAGES`` how many images it takes at least, and in ``MEDIA`` which of images, videos and sounds it judges, if not
all (`eval.media`), and in ``NEEDS_TO_COMPUTE`` what ``compute`` itself needs of the context. A need ``networks.<name>``
is one of the networks in the context. An observation for one metric alone is a function in the metric's own file. A
metric that runs the subjects side by side reads none, and its own ``NEEDS`` say what for.
"""

from __future__ import annotations

import difflib
import importlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from eval.media import medium_of
from eval.metrics import available_metrics
from eval.observation import Observation, Seen
from eval.sharing import Share, help_to_make, made_together
from eval.types import DATA, Context, Subject

SUBJECT = ""  # any name that is not `DATA`
TO_COMPUTE = "NEEDS_TO_COMPUTE"


def check_metrics(metrics: Sequence[str]) -> None:
    """Raise ValueError unless every name is a metric, listing the valid ones; cheap enough for a recipe check."""
    valid = available_metrics()
    for name in metrics:
        if name not in valid:
            near = difflib.get_close_matches(name, valid, n=1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise ValueError(f"unknown metric {name!r}{hint}; valid: {', '.join(valid)}")


def needs_of(metrics: Sequence[str]) -> set[str]:
    """Return what the metrics need of the context and the subjects, e.g. ``features``."""
    check_metrics(metrics)
    looks = [(name, what) for metric in metrics for name in (SUBJECT, DATA) for what in _looks(metric, name)]
    found = {need for name, what in looks for need in _declared(what, "NEEDS", name)}
    return found | {need for metric in metrics for need in _declared(metric, TO_COMPUTE, SUBJECT)}


def networks_of(metrics: Sequence[str]) -> list[str]:
    """Return the networks that the metrics name for themselves, in order (`eval.networks`)."""
    needs = (need.partition(".") for need in needs_of(metrics))
    return sorted(name for kind, _, name in needs if kind == "networks")


def _module(name: str) -> Any:
    return importlib.import_module(f"eval.{name}")


def _declared(what: str, kind: str, name: str) -> Sequence[str]:
    """Return what a file says in ``READS`` or ``NEEDS`` about a subject, or with ``_DATA`` about the data."""
    return getattr(_module(what), f"{kind}_DATA" if name == DATA else kind, ())


def _looks(metric: str, name: str) -> Sequence[str]:
    """Return what looks at a subject, or at the data, for a metric: its observations, or the metric itself."""
    return _declared(metric, "READS", name) or (metric,)


def fewest_images(metrics: Sequence[str]) -> tuple[int, str]:
    """Return how many real and generated images the most demanding metric takes at least, and which that is."""
    check_metrics(metrics)
    found = [(getattr(_module(name), "MIN_IMAGES", 1), name) for name in metrics]
    return max(found, default=(1, ""))


def check_medium(metrics: Sequence[str], samples: Tensor) -> None:
    """Raise ValueError for a metric that cannot judge such samples; one of few steps is enough to know."""
    check_metrics(metrics)
    medium = medium_of(samples)
    for name in metrics:
        judged = getattr(_module(name), "MEDIA", (medium,))
        if medium not in judged:
            raise ValueError(
                f"the metric {name!r} judges {' and '.join(judged)}s, and the model makes {medium}s; leave it out"
            )


def observations(metrics: Sequence[str], name: str = SUBJECT) -> list[str]:
    """Return what `metrics` read of a subject, or of the data, in the order in which it is gathered."""
    check_metrics(metrics)
    return list(dict.fromkeys(what for metric in metrics for what in _declared(metric, "READS", name)))


def look(
    context: Context,
    name: str,
    what: str,
    seen: Seen,
    folder: Path | None = None,
    *,
    batches: Path | None = None,
    share: Share = lambda missing: missing,
) -> Observation:
    """Make the observation `what` of the subject `name`, or of the data, which showed `seen` before.

    With a `folder` it is written there batch by batch, as it is made, and read from there: then 50,000 samples take no
    more memory than a batch of them. Else it is held.

    Args:
        context: The subjects, data and options.
        name: Of the subject, or `DATA`.
        what: Name of the observation.
        seen: What it showed before.
        folder: Where the observation is written.
        batches: Folder in which each batch of rows is kept until all are there. What an interrupted attempt left is not
            made again, and other processes may make some (`help_to_look`). None: no batch is kept by itself.
        share: Is told which batches are missing, and returns which of them this process makes (`eval.sharing`).

    Raises:
        ValueError: For something that the context lacks or the subject does wrong.
    """
    _check_needs(context, what, what, name)
    found: Observation = _module(what).observe(context, name, seen)
    if folder is None:
        return found.held()
    if batches is not None:
        found = made_together(found, batches, share)
    found.save(folder, what)
    return Observation.load(folder, what)


def help_to_look(
    context: Context, name: str, what: str, seen: Seen, *, batches: Path, numbers: Sequence[int]
) -> None:
    """Make the batches of these numbers of an observation that another process began; see `look`."""
    _check_needs(context, what, what, name)
    help_to_make(_module(what).observe(context, name, seen), batches, numbers)


def _check_needs(context: Context, metric: str, what: str, name: str) -> None:
    """Raise ValueError unless `what` can look at a subject, or at the data, for `metric`."""
    subject = context.subjects.get(name, Subject())  # of the data nothing is needed
    _check_context(context, metric, _declared(what, "NEEDS", name))
    for need in _declared(what, "NEEDS", name):
        if need in Context.__dataclass_fields__ or "." in need:
            continue
        if getattr(subject, need) is None:
            raise ValueError(f"metric {metric!r} needs Subject.{need}; subject {name!r} has none")
    if subject.model is not None and subject.model.training:
        raise ValueError(
            f"subject {name!r}: the model is in training mode, so dropout would change metric {metric!r}; "
            "call model.eval()"
        )


def _check_context(context: Context, metric: str, needs: Sequence[str]) -> None:
    """Raise ValueError unless the context has what a metric needs of it."""
    for need in needs:
        kind, _, name = need.partition(".")
        if name and name not in context.networks:
            raise ValueError(f"metric {metric!r} needs the network {name!r}; give Context.networks[{name!r}]")
        if not name and need in Context.__dataclass_fields__ and getattr(context, kind) is None:
            raise ValueError(f"metric {metric!r} needs Context.{need}, which is None; give it")


def measure_all(
    context: Context, metrics: Sequence[str], *, seen: Mapping[str, Seen] | None = None
) -> dict[str, dict[str, Any]]:
    """Return for every subject of the context the merged results of all metrics, JSON types only.

    Args:
        context: The subjects, data and options.
        metrics: Names as in `available_metrics`; they run in this order.
        seen: What subjects, and under `DATA` the data, showed before (see `look`). What is missing is looked at here.

    Raises:
        ValueError: For an unknown metric, something a metric needs and the context lacks (both before any measurement),
            or a result that is NaN or infinite.
    """
    check_metrics(metrics)
    found = {name: dict((seen or {}).get(name, {})) for name in (DATA, *context.subjects)}
    for metric in metrics:
        _check_context(context, metric, _declared(metric, TO_COMPUTE, SUBJECT))
        for name, known in found.items():
            for what in _looks(metric, name):
                if what not in known:
                    _check_needs(context, metric, what, name)
    results: dict[str, dict[str, Any]] = {name: {} for name in context.subjects}
    for metric in metrics:
        for name, known in found.items():
            for what in _declared(metric, "READS", name):
                if what not in known:
                    known[what] = look(context, name, what, known)
        for subject, values in _module(metric).compute(context, found).items():
            for key, value in values.items():
                _check_value(value, f"subject {subject!r}, metric {metric!r}, {key}")
            clash = sorted(set(values) & set(results[subject]))
            if clash:
                raise ValueError(
                    f"metric {metric!r} returns {clash}, which another metric returned already; rename them"
                )
            results[subject] |= values
    return results


def _check_value(value: Any, place: str) -> None:
    """Raise ValueError unless `value` is of JSON types and holds neither NaN nor infinity."""
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{place}: {value!r} cannot be a result ({error}); a metric returns plain finite numbers: look at the "
            "samples and predictions of this subject"
        ) from error
