r"""Build the folder of a real pretrained model, small enough for two cores: a consistency UNet of terrain heights.

    python scripts/build_terrain.py OUT
    python scripts/build_terrain.py OUT --package adaptive_terrain_diffusion-0.4.2-py3-none-any.whl   # offline

It was trained by others (Youwei Yu; MIT), and comes as ONNX in the package `adaptive-terrain-diffusion`, which pip
fetches into a temporary folder; nothing is installed. OUT becomes a plain diffusers `ConsistencyModelPipeline`: a
`UNet2DModel` of 10.45 M parameters that draws 1 x 128 x 128 heights in one step; classes 0 to 99 are difficulties 1
to 100. Where `onnxruntime` can be imported, images of the folder are compared with images of the ONNX file.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import CMStochasticIterativeScheduler, ConsistencyModelPipeline, UNet2DModel
from onnx_reader import Graph, read_graph
from torch import Tensor

from pruning.errors import PruningError
from pruning.files import write_errors, written_whole

PACKAGE, VERSION = "adaptive-terrain-diffusion", "0.4.2"
WEIGHTS = "terrain_diffusion/weights/terrain_consistency_unet_difficulty100.onnx"
SHA256 = "95be54b4a39d58320e187a7ec533351c957f16a00be58773c86074828ee67887"
LICENSE = f"adaptive_terrain_diffusion-{VERSION}.dist-info/licenses/LICENSE"

CLASSES = 100
STAGES = (32, 32, 64, 96, 128)
WITH_ATTENTION = (False, False, True, True, True)
TOLERANCE = 1e-4
"""Of heights from -1 to 1, between two runtimes."""

Layer = dict[str, Tensor]
"""``weight`` and ``bias``."""


def fetch(folder: Path) -> Path:
    """Let pip download the package; return the wheel in `folder`.

    Raises:
        PruningError: If it cannot.
    """
    asked = ["--no-deps", "--only-binary", ":all:", f"{PACKAGE}=={VERSION}"]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    done = subprocess.run(
        [*command, "--dest", str(folder), *asked], capture_output=True, text=True, check=False
    )
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        raise PruningError(
            f"pip could not download {PACKAGE} {VERSION}: without a network or an index that has it, run "
            f"`pip download {' '.join(asked)}` where there is one, and give the wheel as --package. "
            f"pip said:\n{done.stderr.strip()[-1000:]}"
        )
    return wheels[0]


def read_package(package: Path) -> tuple[bytes, str]:
    """Return the ONNX file and the licence of a wheel, or of a folder that one was unpacked or installed into.

    Raises:
        PruningError: If it is neither, or holds other weights than those that this script knows.
    """
    if package.is_file() and not zipfile.is_zipfile(package):
        raise PruningError(f"{package}: no wheel; expected the one of {PACKAGE} {VERSION}, or a folder of it")
    root = zipfile.Path(package) if package.is_file() else package
    weights, license_file = root / WEIGHTS, root / LICENSE
    for file in (weights, license_file):
        if not file.is_file():
            raise PruningError(f"{package}: there is no {file}; expected {PACKAGE} {VERSION}")
    data = weights.read_bytes()
    found = hashlib.sha256(data).hexdigest()
    if found != SHA256:
        raise PruningError(
            f"{weights}: not the weights of {PACKAGE} {VERSION}: their SHA-256 is {found}, expected {SHA256}"
        )
    return data, license_file.read_text(encoding="utf-8")


def empty_unet() -> UNet2DModel:
    """Return the architecture, with weights of no meaning."""
    down = ["AttnDownBlock2D" if attends else "ResnetDownsampleBlock2D" for attends in WITH_ATTENTION]
    up = ["AttnUpBlock2D" if attends else "ResnetUpsampleBlock2D" for attends in reversed(WITH_ATTENTION)]
    return UNet2DModel(
        sample_size=128,
        in_channels=1,
        out_channels=1,
        freq_shift=0,
        flip_sin_to_cos=True,
        block_out_channels=STAGES,
        layers_per_block=4,
        down_block_types=tuple(down),
        up_block_types=tuple(up),
        attention_head_dim=32,
        attn_norm_num_groups=32,
        norm_num_groups=32,
        norm_eps=1e-5,
        resnet_time_scale_shift="scale_shift",
        downsample_type="resnet",
        upsample_type="resnet",
        num_class_embeds=CLASSES,
    ).eval()


class Source:
    """Layers of the ONNX file by their names in OpenAI's guided diffusion, `unet.py`."""

    def __init__(self, graph: Graph) -> None:
        self.weights = graph.weights
        self.maker = {output: node for node in graph.nodes for output in node.outputs}
        self.reader = {name: node for node in graph.nodes for name in node.inputs[1:2]}

    def __contains__(self, layer: str) -> bool:
        return f"network.{layer}.weight" in self.weights

    def layer(self, layer: str) -> Layer:
        """Return a convolution or a linear layer."""
        return {kind: self.weights[f"network.{layer}.{kind}"] for kind in ("weight", "bias")}

    def norm_before(self, layer: str) -> Layer:
        """Return scale and shift of the group norm that a convolution reads, by way of what lies between.

        The exporter wrote norms as a normalisation, ``* scale (C, 1, 1)`` and ``+ shift (C, 1, 1)``; such a shift is
        added nowhere else. Modulation, activation and resampling have their data as first input.
        """
        node = self.reader[f"network.{layer}.weight"]
        while True:
            node = self.maker[node.inputs[0]]
            shift = self.weights.get(node.inputs[-1])
            if node.op == "Add" and shift is not None and shift.dim() == 3:
                scale = self.weights[self.maker[node.inputs[0]].inputs[1]]
                return {"weight": scale.flatten(), "bias": shift.flatten()}


def resnet(source: Source, block: str) -> dict[str, Layer]:
    """Return the layers of a ResNet by their names in diffusers."""
    first, second, shortcut = f"{block}.in_layers.2", f"{block}.out_layers.3", f"{block}.skip_connection"
    layers = {
        "norm1": source.norm_before(first),
        "conv1": source.layer(first),
        "time_emb_proj": source.layer(f"{block}.emb_layers.1"),
        "norm2": source.norm_before(second),
        "conv2": source.layer(second),
    }
    return layers | ({"conv_shortcut": source.layer(shortcut)} if shortcut in source else {})


def attention(source: Source, block: str) -> dict[str, Layer]:
    """Return the layers of an attention by their names in diffusers, 1 x 1 convolutions as linear layers."""
    flat = {name: source.layer(f"{block}.{name}") for name in ("qkv", "proj_out")}
    for layer in flat.values():
        layer["weight"] = layer["weight"].flatten(1)
    parts = {kind: value.chunk(3) for kind, value in flat["qkv"].items()}
    return {
        "group_norm": source.norm_before(f"{block}.qkv"),
        **{f"to_{n}": {kind: parts[kind][i] for kind in parts} for i, n in enumerate("qkv")},
        "to_out.0": flat["proj_out"],
    }


def blocks(model: Any) -> tuple[dict[str, str], dict[str, str]]:
    """Return where each ResNet and each attention, by its name in diffusers, is in guided diffusion."""
    resnets = {"mid_block.resnets.0": "middle_block.0", "mid_block.resnets.1": "middle_block.2"}
    attentions = {"mid_block.attentions.0": "middle_block.1"}
    place = 1  # input_blocks.0 is the first convolution
    for i, stage in enumerate(model.down_blocks):
        for j in range(len(stage.resnets)):
            resnets[f"down_blocks.{i}.resnets.{j}"] = f"input_blocks.{place}.0"
            if hasattr(stage, "attentions"):
                attentions[f"down_blocks.{i}.attentions.{j}"] = f"input_blocks.{place}.1"
            place += 1
        if stage.downsamplers is not None:  # a block of its own
            resnets[f"down_blocks.{i}.downsamplers.0"] = f"input_blocks.{place}.0"
            place += 1
    place = 0
    for i, stage in enumerate(model.up_blocks):
        attends = hasattr(stage, "attentions")
        for j in range(len(stage.resnets)):
            resnets[f"up_blocks.{i}.resnets.{j}"] = f"output_blocks.{place}.0"
            if attends:
                attentions[f"up_blocks.{i}.attentions.{j}"] = f"output_blocks.{place}.1"
            place += 1
        if stage.upsamplers is not None:  # the end of the last block
            resnets[f"up_blocks.{i}.upsamplers.0"] = f"output_blocks.{place - 1}.{1 + attends}"
    return resnets, attentions


def label_table(source: Source) -> Tensor:
    """Return the embedding of each class (100, 128): the file's two layers at (difficulty - 1) / 99."""

    def apply(name: str, x: Tensor) -> Tensor:
        layer = source.layer(f"label_emb.{name}")
        return x @ layer["weight"].T + layer["bias"]

    labels = torch.arange(CLASSES)[:, None] / (CLASSES - 1)  # (100, 1)
    return apply("2", F.silu(apply("0", labels)))


def state_dict(model: UNet2DModel, source: Source) -> dict[str, Tensor]:
    """Return the file's weights by their names in diffusers."""
    layers = {
        "conv_in": source.layer("input_blocks.0.0"),
        "time_embedding.linear_1": source.layer("time_embed.0"),
        "time_embedding.linear_2": source.layer("time_embed.2"),
        "class_embedding": {"weight": label_table(source)},
        "conv_norm_out": source.norm_before("out.2"),
        "conv_out": source.layer("out.2"),
    }
    resnets, attentions = blocks(model)
    for names, read in ((resnets, resnet), (attentions, attention)):
        for name, block in names.items():
            layers |= {f"{name}.{inner}": layer for inner, layer in read(source, block).items()}
    return {f"{name}.{kind}": value for name, layer in layers.items() for kind, value in layer.items()}


@torch.no_grad()
def difference(pipeline: Any, onnx: bytes, count: int = 4) -> float:
    """Return how far diffusers and ONNX Runtime are apart at most, in heights from -1 to 1 of the same noise."""
    import onnxruntime  # pyright: ignore[reportMissingImports]

    labels = torch.linspace(0, CLASSES - 1, count).long()
    noise, same = (
        torch.Generator().manual_seed(0) for _ in range(2)
    )  # given latents must have three channels
    pipeline.set_progress_bar_config(disable=True)
    drawn = pipeline(
        batch_size=count, class_labels=labels, num_inference_steps=1, generator=same, output_type="np"
    ).images  # (N, 128, 128, 1) from 0 to 1
    session = onnxruntime.InferenceSession(onnx, providers=["CPUExecutionProvider"])
    sigma = torch.full((count,), pipeline.scheduler.config.sigma_max)
    told = {
        "noisy": sigma[0] * torch.randn(count, 1, 128, 128, generator=noise),
        "sigma": sigma,
        "difficulty": labels / (CLASSES - 1),
    }
    [expected] = session.run(["denoised"], {name: value.numpy() for name, value in told.items()})
    return float(abs(2 * drawn[..., 0] - 1 - expected[:, 0]).max())


def build(out: Path, package: Path) -> str:
    """Write the folder; return what was checked, in words.

    Raises:
        PruningError: If the package is another, or a check fails; then there is no folder.
    """
    onnx, license_text = read_package(package)
    model = empty_unet()
    model.load_state_dict(state_dict(model, Source(read_graph(onnx))), strict=True)
    pipeline = ConsistencyModelPipeline(unet=model, scheduler=CMStochasticIterativeScheduler())
    with write_errors("the model", out, "There is no folder"), written_whole(out) as folder:
        pipeline.save_pretrained(folder)
        (folder / "LICENSE").write_text(license_text, encoding="utf-8")
        if importlib.util.find_spec("onnxruntime") is None:
            return (
                "loaded strictly; images were not compared with the ONNX file: onnxruntime is not installed"
            )
        found = difference(ConsistencyModelPipeline.from_pretrained(folder), onnx)
        if not found <= TOLERANCE:
            raise PruningError(
                f"{out}: images differ by {found:.1e} from those of the ONNX file, more than {TOLERANCE}"
            )
        return f"loaded strictly; images equal those of the ONNX file to {found:.1e}"


def main() -> None:
    """Fetch the package unless it is given, build the folder, say what was checked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to make")
    parser.add_argument("--package", type=Path, help="wheel or unpacked folder; else pip downloads it")
    args = parser.parse_args()
    if args.out.exists():
        raise SystemExit(f"{args.out}: exists already; choose another folder, or remove it")
    try:
        with tempfile.TemporaryDirectory() as folder:
            checked = build(args.out, args.package or fetch(Path(folder)))
    except PruningError as error:
        raise SystemExit(str(error)) from error
    print(f"{args.out}: {checked}")


if __name__ == "__main__":
    main()
