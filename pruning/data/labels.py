"""Labels of the data against those of the model: what stands for "no class", and which classes are missing."""

from __future__ import annotations

import math

from torch import nn

from pruning.data.images import ImageData
from pruning.data.names import named
from pruning.errors import PruningError
from pruning.models.families import family_of, null_class, num_classes


def find_null_class(
    model: nn.Module, data: ImageData | None, asked: str = "auto"
) -> tuple[int | None, str | None]:
    """Return the null class of a model, and why in a sentence where it is not the model's own config that says it.

    A UNet says how many classes it has, not whether the last of them is "no class". It is taken to be where the data
    have exactly one class less.

    Args:
        model: The denoiser.
        data: What it was trained on, or is trained on now; without them none is found.
        asked: ``auto``, or ``last`` or ``none`` to overrule it; what contradicts the model is a PruningError.
    """
    name, family, settled = type(model).__name__, family_of(model), null_class(model)
    labels, by_family = family.num_classes(model), family.null_class(model)
    if labels is None or by_family is not None:
        if asked == ("last" if labels is None else "none"):
            has = "no classes" if labels is None else f"the null class {by_family} by its config"
            raise PruningError(f"model.null_class: {asked!r} was asked, but {name} has {has}; leave it out")
        return by_family, None
    if asked == "auto" and settled is not None:
        return settled, None
    if asked == "none" or (asked == "auto" and (data is None or data.num_classes != labels - 1)):
        return None, None
    why = "model.null_class says so" if data is None or asked == "last" else f"{data.name} has {labels - 1}"
    return labels - 1, (
        f"{name} has {labels} classes, of which the last, {labels - 1}, is taken to be 'no class' ({why}): guidance "
        "and label dropout use it, and it is never asked for; overrule it with model.null_class=none"
    )


def check_classes(data: ImageData, model: nn.Module) -> list[str]:
    """Check that the data have the labels that a model needs, and say in sentences what is noteworthy of them.

    Raises:
        PruningError: If a class-conditional model has data without labels, or with labels above its own.
    """
    count, name = num_classes(model), type(model).__name__
    if count is None:
        return []
    if data.class_names is None:
        raise PruningError(
            f"{data.name} has no labels, but {name} has {count} classes; name their column in data.label_column, or "
            "sort the images of a folder into one folder a class (two at least)"
        )
    if data.class_names and max(data.class_names) >= count:
        largest = max(data.class_names)
        raise PruningError(
            f"{data.name} has {data.num_classes} classes, the model only {count}: label {largest} "
            f"({data.class_names[largest]!r}), where the model has 0 to {count - 1} (folders named by numbers are the "
            "classes of these numbers)"
        )
    missing = [str(label) for label in range(count) if label not in data.class_names]
    if not missing:
        return []
    return [
        f"{data.name} has {len(data.class_names)} of the {count} classes of {name}: "
        f"{named([str(name) for name in data.class_names.values()])}; none of class {named(missing)}. Calibration and "
        "recovery see nothing of those, evaluation asks the model for all"
    ]


def golden_stride(classes: int) -> int:
    """Return the stride, near the golden section, in which all classes come once and any few in a row are far apart."""
    section = (math.sqrt(5) - 1) / 2 * classes
    strides = (number for number in range(1, classes + 1) if math.gcd(number, classes) == 1)
    return min(strides, key=lambda number: abs(number - section))
