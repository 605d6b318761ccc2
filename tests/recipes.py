"""The recipes of real models: what stands for the model in a dry run, and which tiny pipeline is of the same class."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import diffusers

from tests.pipelines import PIPELINES, TinyPipeline
from tests.shared import SHARED

FLOW = "FlowMatchEulerDiscreteScheduler"


@dataclass(frozen=True)
class RealModel:
    """What a recipe of a real model is proven on.

    Attributes:
        pipeline: Class of its pipeline.
        config: File of its denoiser's configuration among the public ones, without suffix; or the class whose
            defaults are that configuration, with what differs in `changes`.
        tiny: Name of the tiny pipeline of the same class.
        scheduler: Class of its scheduler.
        schedule: What the scheduler's configuration says.
        changes: Of the defaults of a class.
        folder: Of the denoiser.
        native: Its native input follows the config, so that that of the tiny one is small; else it is not run at it.
    """

    pipeline: str
    config: str
    tiny: str
    scheduler: str = FLOW
    schedule: Mapping[str, Any] = field(default_factory=dict)
    changes: Mapping[str, Any] = field(default_factory=dict)
    folder: str = "transformer"
    native: bool = True

    @property
    def denoiser(self) -> dict[str, Any] | None:
        """The denoiser's configuration; None where the public ones are not here."""
        if hasattr(diffusers, self.config):
            parameters = inspect.signature(getattr(diffusers, self.config).__init__).parameters
            defaults = {name: each.default for name, each in parameters.items() if name != "self"}
            return {"_class_name": self.config, **defaults, **self.changes}
        path = SHARED / "configs" / f"{self.config}.json"
        return json.loads(path.read_text("utf-8")) if path.is_file() else None


_DYNAMIC = {"use_dynamic_shifting": True, "shift": 3.0}
REAL = {
    "sdxl": RealModel(
        "StableDiffusionXLPipeline",
        "sdxl_unet",
        "sdxl",
        "EulerDiscreteScheduler",
        {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
        folder="unet",
    ),
    "sd35-medium": RealModel("StableDiffusion3Pipeline", "sd35_medium", "sd3", schedule={"shift": 3.0}),
    "sd35-large": RealModel("StableDiffusion3Pipeline", "sd35_large", "sd3", schedule={"shift": 3.0}),
    "flux1-dev": RealModel("FluxPipeline", "flux1_dev", "flux", schedule=_DYNAMIC),
    "flux1-schnell": RealModel("FluxPipeline", "flux1_schnell", "flux-schnell"),
    "flux2-klein": RealModel("Flux2KleinPipeline", "flux2_klein_9b", "flux2-klein", schedule=_DYNAMIC),
    "pixart-sigma": RealModel(
        "PixArtSigmaPipeline", "pixart_sigma_1024", "pixart-sigma", "DPMSolverMultistepScheduler"
    ),
    "sana15": RealModel("SanaPipeline", "sana15_4800m", "sana", schedule={"shift": 3.0}),
    "qwen-image": RealModel("QwenImagePipeline", "qwen_image", "qwen-image", schedule=_DYNAMIC),
    "z-image-turbo": RealModel("ZImagePipeline", "z_image_turbo", "z-image-turbo", schedule={"shift": 3.0}),
    "wan21-1_3b": RealModel("WanPipeline", "wan21_t2v_1_3b", "wan", "UniPCMultistepScheduler"),
    "wan22-5b": RealModel("WanPipeline", "wan22_ti2v_5b", "wan-token-times", "UniPCMultistepScheduler"),
    "hunyuanvideo15": RealModel(
        "HunyuanVideo15Pipeline",
        "HunyuanVideo15Transformer3DModel",
        "hunyuan-video15",
        changes={"task_type": "t2v"},
        native=False,
    ),
    "ltx-video-2b": RealModel("LTXPipeline", "ltx_video_2b", "ltx", schedule=_DYNAMIC),
    "cogvideox-2b": RealModel("CogVideoXPipeline", "cogvideox_2b", "cogvideox", "CogVideoXDDIMScheduler"),
    "stable-audio-open": RealModel(
        "StableAudioPipeline", "stable_audio_open", "stable-audio", "CosineDPMSolverMultistepScheduler"
    ),
}
"""By recipe."""


def write_folder(real: RealModel, folder: Path) -> None:
    """Write a pipeline's folder that holds its configurations and no weights."""
    denoiser = real.denoiser
    assert denoiser is not None
    index = {
        "_class_name": real.pipeline,
        real.folder: ["diffusers", denoiser["_class_name"]],
        "scheduler": ["diffusers", real.scheduler],
    }
    files = {
        "model_index.json": index,
        f"{real.folder}/config.json": denoiser,
        "scheduler/scheduler_config.json": {"_class_name": real.scheduler, **real.schedule},
    }
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content), "utf-8")


def made_small(real: RealModel, folder: Path) -> list[str]:
    """Write the tiny pipeline to `folder`; return the overrides with which the recipe runs on it in little time."""
    tiny = PIPELINES[real.tiny]
    tiny.build().save_pretrained(folder)
    at_native = [] if real.native else ["evaluate.metrics=[consistency, denoising]", "export.formats=[]"]
    return [
        f"model.source={folder}",
        "model.dtype=float32",
        "device=cpu",
        *_arguments(tiny),
        *at_native,
        "calibrate.num_samples=4",
        "calibrate.timestep_buckets=2",
        "calibrate.batch_size=2",
        "prune.target={ratio: 0.25}",
        "prune.round_to=1",
        "recover.num_samples=4",
        "recover.steps=3",
        "recover.batch_size=2",
        "recover.gradient_accumulation=1",
        "recover.mixed_precision=no",
        "evaluate.num_samples=2",
        "evaluate.denoising_samples=2",
        "evaluate.latency={batch_size: 1, runs: 2, sampling_runs: 1}",
    ]


def _arguments(tiny: TinyPipeline) -> Iterator[str]:
    for name, value in tiny.call.items():
        yield f"pipeline.{name}={json.dumps(value) if not isinstance(value, str) else value}"
