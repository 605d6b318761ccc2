"""The stock model of a config: what a model's own class builds, without what pruning has to say."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from pruning.types import DEFAULTED, PRUNING_KEY, config_of

logger = logging.getLogger(__name__)


def stock_model(model: Any, values: Mapping[str, Any] | None = None) -> nn.Module | None:
    """Build the stock model of a model's config on the meta device; None if its class cannot be built so.

    Args:
        model: A diffusers model, pruned or not.
        values: Entries of the config that are to be others.
    """
    config = {name: value for name, value in config_of(model).items() if name not in (PRUNING_KEY, DEFAULTED)}
    try:
        with torch.device("meta"):
            return type(model).from_config({**config, **(values or {})})
    except Exception as error:  # whatever a class has against a config, it then cannot say it
        logger.debug("%s cannot be built with %s: %s", type(model).__name__, values, error)
        return None
