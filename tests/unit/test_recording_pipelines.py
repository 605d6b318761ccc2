"""Pipelines of the odd kind: they fail, draw, cache, swap their parts, or are asked for more than one sample."""

from __future__ import annotations

import copy
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import cpu_offload
from diffusers import FirstBlockCacheConfig, KDPM2DiscreteScheduler
from torch import nn

from pruning.errors import PruningError
from pruning.recording import RecordedCalls, record, recorded_batches
from pruning.recording.images import apart
from pruning.recording.writing import _said
from pruning.recovery import recover_recorded
from pruning.recovery.batches import Share
from pruning.recovery.objective import training_step
from pruning.recovery.recorded import RecordedSource
from pruning.settings import Recover
from tests.pipelines import PIPELINES

TINY = PIPELINES["sd"]
CALL = {**TINY.call, "num_inference_steps": 3}


def recorded(pipeline: Any, folder: Path, **how: Any) -> RecordedCalls:
    return record(pipeline, TINY.inputs, folder, call={**CALL, **how.pop("call", {})}, **how)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, RecordedCalls]:
    pipeline = TINY.build()
    return pipeline, recorded(pipeline, tmp_path_factory.mktemp("sd") / "calls")


class Stopped(BaseException):
    """In the place of Ctrl-C."""


def state_of(pipeline: Any) -> dict[str, Any]:
    """Return all that a call of a pipeline may change of it and of the generators."""
    drawn_by_numpy: Any = np.random.get_state()  # noqa: NPY002
    found = dict(vars(pipeline))
    for name, part in pipeline.components.items():
        if isinstance(part, nn.Module):
            for path, module in part.named_modules():
                found[f"{name}.{path}"] = (
                    module.training,
                    len(module._forward_hooks),
                    len(module._forward_pre_hooks),
                    getattr(module, "processor", None),
                )
    found["steps"] = vars(type(pipeline.scheduler))["step"], pipeline.scheduler.num_inference_steps
    found["drawn"] = torch.get_rng_state().sum(), random.getstate(), drawn_by_numpy[1].sum()
    return found


@pytest.mark.parametrize("error", [None, RuntimeError, Stopped])
@pytest.mark.parametrize("name", ["sd", "sd-pag"])
def test_a_pipeline_is_left_as_it_was_however_its_run_ends(tmp_path: Path, name: str, error: Any):
    pipeline = PIPELINES[name].build()
    before = state_of(pipeline)

    def stop(module: nn.Module, args: Any) -> None:
        if error is not None:
            raise error("stopped")

    hook = pipeline.unet.register_forward_pre_hook(stop)
    before = state_of(pipeline)
    fails = {None: PruningError, RuntimeError: PruningError, Stopped: Stopped}[error]
    if error is None and name == "sd":
        recorded(pipeline, tmp_path / "calls", points=1)
    else:
        with pytest.raises(fails):
            recorded(pipeline, tmp_path / "calls", points=1)
        assert not (tmp_path / "calls").exists()
    assert state_of(pipeline) == before
    hook.remove()


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        ({"height": 13}, "ValueError: `height` and `width` have to be divisible by 8"),
        ({"num_inference_steps": 0}, "ZeroDivisionError"),
        ({"callback_on_step_end": lambda *given: 1 / 0}, "ZeroDivisionError: division by zero"),
    ],
    ids=["height", "steps", "callback"],
)
def test_what_a_pipeline_raises_is_said_with_what_it_was_asked(tmp_path: Path, call: Any, reason: str):
    with pytest.raises(PruningError, match=rf"StableDiffusionPipeline fails with \{{'num_inf.*{reason}"):
        recorded(TINY.build(), tmp_path / "calls", call=call)
    assert not (tmp_path / "calls").exists()


@pytest.mark.parametrize("step", [0, 2])
def test_nan_is_not_recorded(tmp_path: Path, step: int):
    pipeline = TINY.build()

    class Spoiled(type(pipeline.scheduler)):
        def step(self, model_output: Any, timestep: Any, sample: Any, **more: Any) -> Any:
            result = super().step(model_output, timestep, sample, **more)[0]
            return (result * (float("nan") if timestep == self.timesteps[step] else 1),)

    pipeline.scheduler = Spoiled.from_config(pipeline.scheduler.config)
    with pytest.raises(PruningError, match="NaN came up in the pipeline's own run"):
        recorded(pipeline, tmp_path / "calls", points=None)


def test_what_is_drawn_from_global_generators_is_that_of_the_sample(tmp_path: Path):
    pipeline = TINY.build()

    def drawn(self: Any, index: int, t: Any, given: dict[str, Any]) -> dict[str, Any]:
        noise = torch.from_numpy(np.random.randn(*given["latents"].shape)).float()  # noqa: NPY002
        return {"latents": given["latents"] + 0.1 * random.random() * noise}

    call = {"callback_on_step_end": drawn}
    one, other = (recorded(pipeline, tmp_path / name, call=call, points=None) for name in "ab")
    assert [row.to_json() for row in one.rows] == [row.to_json() for row in other.rows]


def test_a_scheduler_that_says_the_noise_of_whole_steps_alone_is_not_noised_anew(tmp_path: Path):
    pipeline = TINY.build()
    pipeline.scheduler = KDPM2DiscreteScheduler.from_config(pipeline.scheduler.config)
    calls = recorded(pipeline, tmp_path / "calls", points=None)
    assert calls.steps == 5
    assert calls.head.target is None
    with pytest.raises(PruningError, match="cannot be noised anew"):
        recorded(pipeline, tmp_path / "other", noised_anew=True)


def test_a_denoiser_that_answers_from_a_cache_is_refused(tmp_path: Path):
    tiny = PIPELINES["flux"]
    pipeline = tiny.build()
    pipeline.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.1))
    with pytest.raises(
        PruningError, match=r"'transformer' answers from a cache.*call its disable_cache\(\) first"
    ):
        record(pipeline, tiny.inputs, tmp_path / "calls", call=tiny.call)


def test_what_is_in_training_mode_is_recorded_in_evaluation_mode(tmp_path: Path):
    pipeline = TINY.build()
    pipeline.unet.train()
    pipeline.unet.conv_in.eval()
    dropouts = [module for module in pipeline.unet.modules() if isinstance(module, nn.Dropout)]
    for module in dropouts:
        module.p = 0.5
    recorded(pipeline, tmp_path / "calls", points=1)
    assert dropouts[0].training
    assert pipeline.unet.training
    assert not pipeline.unet.conv_in.training


def test_weights_that_are_not_loaded_are_named(tmp_path: Path):
    pipeline = TINY.build()
    cpu_offload(pipeline.unet, execution_device=torch.device("cpu"))
    with pytest.raises(PruningError, match="weights of 'unet' are not loaded"):
        recorded(pipeline, tmp_path / "calls")


def test_a_subclass_of_a_pipeline_that_cannot_be_recorded_is_refused_too(tmp_path: Path):
    tiny = PIPELINES["flux2-klein-kv"]
    pipeline = tiny.build()
    pipeline.__class__ = type("MyPipeline", (type(pipeline),), {})
    with pytest.raises(PruningError, match="MyPipeline cannot be recorded: its calls read keys and values"):
        record(pipeline, tiny.inputs, tmp_path, call=tiny.call)


@pytest.mark.parametrize("how", [{"noised_anew": True}, {"for_images": True}], ids=str)
def test_latents_of_several_samples_a_call_cannot_be_made_anew(tmp_path: Path, how: Any):
    with pytest.raises(PruningError, match="ask for one sample in each of inputs"):
        recorded(TINY.build(), tmp_path / "calls", call={"num_images_per_prompt": 2}, **how)
    calls = recorded(TINY.build(), tmp_path / "points", call={"num_images_per_prompt": 2}, points=1)
    assert len(calls.rows) == 3 * 4  # samples, images and branches


def test_a_recording_goes_on_with_the_very_arguments_alone(tmp_path: Path):
    pipeline = TINY.build()
    one, other = (lambda pipeline, index, t, given: given), (lambda pipeline, index, t, given: dict(given))
    recorded(pipeline, tmp_path, call={"callback_on_step_end": one}, points=1)
    with pytest.raises(PruningError, match=r"another recording: call\.callback_on_step_end was"):
        recorded(pipeline, tmp_path, call={"callback_on_step_end": other}, points=1)
    embeds = torch.zeros(1, 4, pipeline.unet.config.cross_attention_dim)
    said = [
        _said(value)
        for value in (
            embeds,
            embeds.half(),
            embeds.flatten(),
            np.zeros(4),
            np.zeros((2, 2)),
            np.zeros(8, "f4"),
        )
    ]
    assert len(set(said)) == len(said)


def test_positions_keep_the_type_in_which_the_pipeline_gives_them(tmp_path: Path):
    tiny = PIPELINES["longcat-image"]  # its positions begin at 512, which bfloat16 cannot tell from 513
    pipeline = tiny.build().to(torch.bfloat16)
    calls = record(pipeline, tiny.inputs[:1], tmp_path, call=tiny.call, points=1)
    own = calls.call(calls.rows[:1])
    assert (own["hidden_states"].dtype, own["img_ids"].dtype) == (torch.bfloat16, torch.float32)
    for batch in recorded_batches(calls, timestep_buckets=1, dtype=torch.bfloat16):
        assert torch.equal(batch.call["img_ids"], own["img_ids"])
    settings = Recover(steps=1, batch_size=1)
    trained = RecordedSource(calls, calls.rows, False, Share(settings, 0, torch.device("cpu"))).build(0, 1)
    shown = []
    with torch.no_grad():
        teacher = pipeline.transformer
        student = copy.deepcopy(teacher).float()
        for model in (student, teacher):
            model.register_forward_pre_hook(lambda module, args, given: shown.append(given), with_kwargs=True)
        training_step(student, teacher, trained, distill_weight=1.0)
    assert [given["hidden_states"].dtype for given in shown] == [torch.float32, torch.bfloat16]
    assert all(torch.equal(given["img_ids"], own["img_ids"]) for given in shown)


def test_inputs_may_come_from_a_generator(tmp_path: Path):
    calls = record(TINY.build(), (one for one in TINY.inputs), tmp_path, call=CALL, points=1)
    assert calls.samples == 3


def test_rows_that_go_alone_are_trained_and_shown_alone(whole: tuple[Any, RecordedCalls]):
    calls = copy.copy(whole[1])
    unet = calls.head.denoisers["unet"]
    calls.head = replace(calls.head, denoisers={"unet": replace(unet, alone=True)})
    calls._signatures.clear()
    rows, settings = calls.of("unet"), Recover(steps=1, batch_size=3)
    batch = RecordedSource(calls, rows, True, Share(settings, 0, torch.device("cpu"))).build(0, 3)
    assert len(batch.sample_ids) == len(batch.call["sample"]) == len(batch.dropped) == 1
    assert [len(part) for part in apart(calls, [(0, rows[0], {}), (1, rows[0], {})])] == [1, 1]
    with pytest.raises(PruningError, match="'unet' takes one row a call"):
        calls.call([rows[0], rows[0]])


def test_the_calls_of_another_model_are_refused(whole: tuple[Any, RecordedCalls]):
    other = PIPELINES["flux"].build().transformer
    with pytest.raises(
        PruningError, match="FluxTransformer2DModel does not take what was recorded of UNet2DC"
    ):
        recover_recorded(copy.deepcopy(other), other, whole[1], Recover(steps=1), device="cpu")


@pytest.mark.parametrize(
    ("how", "fault"),
    [
        ({"batch_size": "4"}, "batch_size '4' must be at least 1"),
        ({"batch_size": 2.5}, "batch_size 2.5"),
        ({"timestep_buckets": 1.5}, "timestep_buckets 1.5: must be 1 to 3"),
        ({"samples": "ab"}, "samples is 'ab'; expected numbers of samples"),
        ({"samples": [1.7]}, "samples is"),
        ({"samples": 5}, "samples is 5"),
        ({"seed": 1.5}, "seed is 1.5; it must be a whole number"),
        ({"device": "nope"}, "device is 'nope', which cannot be used"),
        ({"dtype": "float32"}, "dtype is 'float32'; expected a floating point type"),
        ({"dtype": torch.int64}, "dtype is torch.int64"),
    ],
    ids=str,
)
def test_arguments_of_the_wrong_type_are_named_at_once(
    whole: tuple[Any, RecordedCalls], how: Any, fault: str
):
    with pytest.raises(PruningError, match=fault):
        recorded_batches(whole[1], **{"timestep_buckets": 3, **how})
