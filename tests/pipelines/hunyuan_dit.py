"""HunyuanDiT, with and without perturbed attention."""

from __future__ import annotations

from typing import Any

from tests.pipelines.base import assemble, denoiser, scheduler, text
from tests.pipelines.decoders import kl
from tests.pipelines.encoders import bert, t5
from tests.pipelines.words import tokenizer

CALL = {"guidance_scale": 5.0, "height": 16, "width": 16, "use_resolution_binning": False}


def hunyuan_dit(cls: str = "HunyuanDiTPipeline", **more: Any) -> Any:
    return assemble(
        cls,
        vae=kl(),
        text_encoder=bert(),
        tokenizer=tokenizer(begin=True),
        transformer=denoiser("hunyuan-dit11", learn_sigma=True, text_len=77, text_len_t5=256),
        scheduler=scheduler("DDPMScheduler", prediction_type="v_prediction"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
        text_encoder_2=t5(16),
        tokenizer_2=tokenizer(256),
        **more,
    )


PIPELINES = {
    "hunyuan-dit": text(hunyuan_dit, **CALL),
    "hunyuan-dit-pag": text(
        lambda: hunyuan_dit("HunyuanDiTPAGPipeline", pag_applied_layers=["blocks.1"]), **CALL
    ),
}
