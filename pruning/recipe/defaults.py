"""What null stands for where the default depends on other values of the recipe."""

from __future__ import annotations

from pruning.recipe.schema import Recipe

DIGITS, DIGITS_FEATURES = "digits", "bundled:models/digits-classifier"
MAX_WARMUP = 50


def features(recipe: Recipe) -> str:
    """Return the feature network: the recipe's, else the digits classifier for digits and Inception for all else."""
    given = recipe.evaluate.features
    if given is not None:
        return given
    return DIGITS_FEATURES if recipe.data.source == DIGITS else "inception"


def warmup_steps(recipe: Recipe) -> int:
    """Return the steps of warm-up: the recipe's, else a tenth of all steps, and at most 50."""
    given = recipe.recover.warmup_steps
    return min(MAX_WARMUP, recipe.recover.steps // 10) if given is None else given
