"""A run: one recipe in one run directory, and everything a stage may ask for, loaded when first asked."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from diffusers import DiffusionPipeline, ModelMixin

from pruning import allocation, checkpoint, models
from pruning.calibration import FirstPass, load_first_pass, load_stats
from pruning.data import Conditioner, ImageData, NoisedBatch, conditioner, noised_batches, open_images
from pruning.groups import find_groups
from pruning.recipe import Recipe, load_recipe, refusal, to_yaml
from pruning.stages.folder import RunFolder, file_hash, read_json, write_json
from pruning.stages.lock import locked
from pruning.stages.progress import Bars
from pruning.stages.ranks import Ranks
from pruning.types import CalibrationStats, PrunableGroup, PruningPlan, Scores

T = TypeVar("T")
