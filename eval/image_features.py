"""Features of a subject's images and of the real ones, extracted once for all metrics that compare them.

Observation: ``features`` ``(N, d)``, one row per image; the facts are those of the network (`eval.features`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from eval.features import FeatureExtractor
from eval.observation import Observation, Seen
from eval.types import DATA, Context

NEEDS = ("features",)
NEEDS_DATA = ("real", "features")


def observe(context: Context, name: str, seen: Seen) -> Observation:
    """Extract the features of a subject's images, or of the real ones for the data."""
    assert context.features is not None
    return observe_with(context.features(), context, name, seen)


def observe_with(extractor: FeatureExtractor, context: Context, name: str, seen: Seen) -> Observation:
    """Extract features of one network: those of a subject's images, or of the real ones for the data."""
    place = "real images" if name == DATA else f"subject {name!r}"
    if name == DATA:
        assert context.real is not None
        images = context.real()
    else:
        images = seen["samples"].tensors["samples"]
    features = extractor.rows(images, batch_size=context.batch_size, place=place)
    return Observation({"features": features}, extractor.facts)


def features_of(
    context: Context, seen: Mapping[str, Seen], what: str = "image_features"
) -> tuple[Tensor, dict[str, Tensor], Mapping[str, Any]]:
    """Return the features of the real images ``(M, d)``, those of every subject ``(N, d)``, and the network's facts.

    Args:
        context: Names the subjects.
        seen: What they and the data showed.
        what: Name of the observation.

    Raises:
        ValueError: If they are not of one network and one number of images, which only old observations can be.
    """
    real = seen[DATA][what]
    generated = {}
    for name in context.subjects:
        found = seen[name][what]
        if found.facts != real.facts:
            raise ValueError(
                f"subject {name!r} was observed with the features {dict(found.facts)}, the real images with "
                f"{dict(real.facts)}; observe both with one"
            )
        generated[name] = found.tensors["features"]
    counts = {name: len(features) for name, features in generated.items()}
    if len(set(counts.values())) > 1:
        raise ValueError(
            f"the subjects were observed with different numbers of images: {counts}; observe them anew"
        )
    return real.tensors["features"], generated, real.facts
