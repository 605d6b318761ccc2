"""Writing to the config of a diffusers model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pruning.types import DEFAULTED, config_of


def write_config(model: Any, values: Mapping[str, Any]) -> None:
    """Set entries of a model's config, so that a model built from it is built with them."""
    if DEFAULTED in config_of(model):
        values = {**values, DEFAULTED: [name for name in config_of(model)[DEFAULTED] if name not in values]}
    model.register_to_config(**values)


def forget(model: Any, name: str) -> None:
    """Take an entry out of a model's config."""
    values = {key: value for key, value in config_of(model).items() if key != name}
    model._internal_dict = type(model.config)(values)
