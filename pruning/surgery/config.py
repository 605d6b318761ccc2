"""The config of a diffusers model: writing to it, and building what it says."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from pruning.types import DEFAULTED, config_of, stock_config

logger = logging.getLogger(__name__)


def write_config(model: Any, values: Mapping[str, Any]) -> None:
    """Set entries of a model's config, so that a model built from it is built with them."""
    if DEFAULTED in config_of(model):
        values = {**values, DEFAULTED: [name for name in config_of(model)[DEFAULTED] if name not in values]}
    model.register_to_config(**values)


def forget(model: Any, name: str) -> None:
    """Take an entry out of a model's config."""
    values = {key: value for key, value in config_of(model).items() if key != name}
    model._internal_dict = type(model.config)(values)


def stock_model(model: Any, values: Mapping[str, Any]) -> nn.Module | None:
    """Build the stock model of a model's config with other values, on the meta device; None if there is none."""
    try:
        with torch.device("meta"):
            return type(model).from_config({**stock_config(model), **values})
    except Exception as error:  # whatever a class has against a config, it then cannot say it
        logger.debug("%s cannot be built with %s: %s", type(model).__name__, dict(values), error)
        return None
