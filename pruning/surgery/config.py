"""Writing to the config of a diffusers model, and writing it out."""

from __future__ import annotations

import json
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


def config_text(model: Any) -> str:
    """Return what ``config.json`` says of a model: equal models have equal ones, wherever they were loaded from.

    Where that was, diffusers writes into the config, and fills in anew when it loads it.
    """
    config = json.loads(model.to_json_string())
    config.pop("_name_or_path", None)
    return json.dumps(config, indent=2, sort_keys=True) + "\n"
