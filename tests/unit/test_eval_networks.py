"""Metrics that name their own network: tiny random ones of the same classes, against transformers and the formulas."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.functional.multimodal import clip_score as their_clip_score
from transformers import (
    CLIPImageProcessor,
    CLIPModel,
    CLIPProcessor,
    CLIPVisionModelWithProjection,
    Dinov2Config,
    Dinov2Model,
)

from eval.networks import check_network, load_network
from eval.run import measure_all, needs_of, networks_of
from eval.types import Context, Subject
from tests.unit.tiny_pipelines import tiny_clip, vision_config

WORDS = ["a red cat", "a blue dog", "a cat of a dog", "red red red"]


def pictures(n: int, seed: int = 0, size: tuple[int, int] = (40, 48), low: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(low, 256, (n, 3, *size), dtype=torch.uint8, generator=generator)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def eyes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of a tiny random image tower of CLIP."""
    folder = tmp_path_factory.mktemp("eyes")
    torch.manual_seed(1)
    CLIPVisionModelWithProjection(vision_config()).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def dinov2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dinov2")
    torch.manual_seed(2)
    config = Dinov2Config(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=70, patch_size=14
    )
    Dinov2Model(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def alexnet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("alexnet") / "alexnet.pth"
    torch.manual_seed(3)
    torch.save(torchvision.models.alexnet(weights=None).state_dict(), path)
    return path


def context(images: dict[str, Tensor], **given: Any) -> Context:
    return Context(
        {name: Subject(sample=lambda ids, x=x: x[ids]) for name, x in images.items()},
        num_samples=len(images["dense"]),
        batch_size=7,
        **given,
    )


# DINOv2


def test_dinov2_features_are_those_of_transformers_on_images_that_pillow_resized(dinov2: Path) -> None:
    network = load_network("dinov2", str(dinov2))
    images = pictures(3)
    found = network.extract(images)
    model = Dinov2Model.from_pretrained(dinov2).eval()
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    shown = []
    for image in images:
        picture = Image.fromarray(image.permute(1, 2, 0).numpy()).resize((224, 224), Image.Resampling.BICUBIC)
        shown.append(((np.asarray(picture) / 255 - mean) / std).transpose(2, 0, 1))
    with torch.no_grad():
        wanted = model(torch.tensor(np.stack(shown), dtype=torch.float32)).last_hidden_state[:, 0]
    assert torch.allclose(
        found, wanted, atol=2e-3 * float(wanted.abs().max())
    )  # Pillow rounds between its passes
    digest = hashlib.sha256((dinov2 / "model.safetensors").read_bytes()).hexdigest()
    assert network.sha256 == digest
    assert network.frechet_name == f"FD-DINOv2 with other DINOv2 weights {digest[:8]}"


def test_fd_dinov2_is_the_frechet_distance_of_these_features(dinov2: Path) -> None:
    images = {"dense": pictures(40), "pruned": pictures(40, 1, low=60)}
    network = load_network("dinov2", str(dinov2))
    found = measure_all(
        context(images, real=lambda: pictures(45, 2), networks={"dinov2": lambda: network}), ["fd_dinov2"]
    )
    real, ours = (network.extract(x).double().numpy() for x in (pictures(45, 2), images["pruned"]))
    a, b = np.cov(real.T), np.cov(ours.T)
    roots = np.sqrt(np.linalg.eigvals(a @ b).astype(complex)).real.sum()
    wanted = ((real.mean(0) - ours.mean(0)) ** 2).sum() + np.trace(a) + np.trace(b) - 2 * roots
    assert found["pruned"]["fd_dinov2"] == pytest.approx(wanted, rel=1e-4)
    low, high = found["pruned"]["fd_dinov2_ratio_ci95"]
    assert low < found["pruned"]["fd_dinov2_ratio"] < high
    assert found["pruned"]["fd_dinov2_name"].startswith("FD-DINOv2 with other DINOv2 weights")
    assert found["pruned"]["fd_dinov2_detectable"] > 0


def test_grey_images_are_repeated_and_other_channels_refused(dinov2: Path) -> None:
    network = load_network("dinov2", str(dinov2))
    grey = pictures(2)[:, :1]
    assert torch.equal(network.extract(grey), network.extract(grey.repeat(1, 3, 1, 1)))
    with pytest.raises(ValueError, match=r"DINOv2 takes grey or RGB images \(1 or 3 channels\), found 4"):
        network.extract(torch.zeros(1, 4, 8, 8, dtype=torch.uint8))


# CMMD


def test_cmmd_embeddings_are_those_of_the_authors_port(eyes: Path) -> None:
    network = load_network("cmmd", str(eyes))
    images = pictures(3)
    resized = F.interpolate(images.float() / 255, size=(30, 30), mode="bicubic")
    processor = CLIPImageProcessor(crop_size={"height": 30, "width": 30})
    inputs = processor(
        images=list(resized), do_normalize=True, do_center_crop=False, do_resize=False, do_rescale=False,
        return_tensors="pt",
    )  # fmt: skip
    model = CLIPVisionModelWithProjection.from_pretrained(eyes).eval()
    with torch.no_grad():
        wanted = model(**inputs).image_embeds
    wanted = wanted / wanted.norm(dim=-1, keepdim=True)
    assert torch.allclose(network.extract(images), wanted, atol=1e-5)
    assert network.kernel_name.startswith("CMMD with other CLIP weights ")


def test_cmmd_is_the_papers_formula(eyes: Path) -> None:
    images = {"dense": pictures(30), "pruned": pictures(30, 1, low=80)}
    network = load_network("cmmd", str(eyes))
    found = measure_all(
        context(images, real=lambda: pictures(25, 2), networks={"cmmd": lambda: network}), ["cmmd"]
    )
    x, y = (network.extract(z).double().numpy() for z in (pictures(25, 2), images["pruned"]))

    def mean(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.mean([[np.exp(-((p - q) ** 2).sum() / 200) for q in b] for p in a]))

    wanted = 1000 * (mean(x, x) + mean(y, y) - 2 * mean(x, y))
    assert found["pruned"]["cmmd"] == pytest.approx(wanted, rel=1e-6)
    assert found["pruned"]["cmmd_difference"] == pytest.approx(
        found["pruned"]["cmmd"] - found["dense"]["cmmd"]
    )
    low, high = found["pruned"]["cmmd_difference_ci95"]
    assert 0 < low < found["pruned"]["cmmd_difference"] < high
    assert found["dense"]["cmmd_difference_ci95"] == [0, 0]


# CLIP score


def test_clip_scores_are_those_of_torchmetrics(clip: Path) -> None:
    network = load_network("clip", str(clip))
    images = {"dense": pictures(12), "pruned": pictures(12, 1, low=90)}
    ctx = context(
        images, prompts=lambda ids: [WORDS[i % 4] for i in ids.tolist()], networks={"clip": lambda: network}
    )
    found = measure_all(ctx, ["clip_score"])
    prompts = [WORDS[i % 4] for i in range(12)]

    class Tensors(CLIPModel):
        """transformers 5 wraps what torchmetrics 1.9 expects as tensors."""

        def get_image_features(self, *args: Any, **options: Any) -> Any:
            found = super().get_image_features(*args, **options)
            return getattr(found, "pooler_output", found)

        def get_text_features(self, *args: Any, **options: Any) -> Any:
            found = super().get_text_features(*args, **options)
            return getattr(found, "pooler_output", found)

    def theirs() -> tuple[CLIPModel, CLIPProcessor]:
        return Tensors.from_pretrained(clip).eval(), CLIPProcessor.from_pretrained(clip)

    scores = [
        float(their_clip_score(image, prompt, model_name_or_path=theirs))  # type: ignore[arg-type]
        for image, prompt in zip(images["pruned"], prompts, strict=True)
    ]
    assert len({round(one, 3) for one in scores}) > 4
    assert found["pruned"]["clip_score"] == pytest.approx(np.mean(scores), abs=1e-3)
    low, high = found["pruned"]["clip_score_ratio_ci95"]
    assert low < found["pruned"]["clip_score_ratio"] < high
    assert found["pruned"]["clip_score_network"] == str(clip)


def test_a_long_prompt_is_cut_and_a_wrong_number_of_prompts_is_an_error(clip: Path) -> None:
    network = load_network("clip", str(clip))
    assert network.texts(["cat " * 200]).shape == (1, 16)
    ctx = context({"dense": pictures(3)}, prompts=lambda ids: ["a cat"], networks={"clip": lambda: network})
    with pytest.raises(ValueError, match=r"Context\.prompts returned 1 prompts for 3 sample ids"):
        measure_all(ctx, ["clip_score"])


# LPIPS


def by_hand(images: Tensor, reference: Tensor, alexnet: Path) -> Tensor:
    """LPIPS as the paper says, on torchvision's own AlexNet, and the published heads."""
    network = torchvision.models.alexnet(weights=None)
    network.load_state_dict(torch.load(alexnet))
    folder = Path(__import__("torchmetrics").__file__).parent / "functional" / "image" / "lpips_models"
    heads = torch.load(folder / "alex.pth", map_location="cpu")
    shift = torch.tensor([-0.030, -0.088, -0.188])[None, :, None, None]
    scale = torch.tensor([0.458, 0.448, 0.450])[None, :, None, None]
    x, y = ((2 * each.float() / 255 - 1 - shift) / scale for each in (images, reference))
    total = torch.zeros(len(images))
    level = 0
    for number, layer in enumerate(network.features):
        x, y = layer(x), layer(y)
        if number in (1, 4, 7, 9, 11):
            unit = [each / (each.square().sum(1, keepdim=True).sqrt() + 1e-8) for each in (x, y)]
            change = (unit[0] - unit[1]).square()
            total += (change * heads[f"lin{level}.model.1.weight"]).sum(1).mean((1, 2))
            level += 1
    assert level == 5
    return total.detach()


def test_lpips_is_the_papers_formula(alexnet: Path) -> None:
    network = load_network("lpips", f"alex:{alexnet}")
    images, reference = pictures(4, size=(70, 90)), pictures(4, 1, size=(70, 90))
    found = network.distances(images, reference)
    assert torch.allclose(found.float(), by_hand(images, reference, alexnet), rtol=1e-4)
    digest = hashlib.sha256(alexnet.read_bytes()).hexdigest()
    assert network.name == f"LPIPS (alex) with other weights {digest[:8]}"
    assert float(network.distances(images, images).abs().max()) == 0


def test_lpips_of_small_images_and_by_subject(alexnet: Path) -> None:
    dense = pictures(5, size=(8, 10))
    shifted = (dense.int() + 20).clamp(0, 255).to(torch.uint8)
    network = load_network("lpips", f"alex:{alexnet}")
    ctx = context(
        {"dense": dense, "pruned": shifted, "other": pictures(5, 9, size=(8, 10))},
        networks={"lpips": lambda: network},
    )
    found = measure_all(ctx, ["lpips", "consistency"])
    assert found["dense"]["lpips"] == 0
    assert 0 < found["pruned"]["lpips"] < found["other"]["lpips"]
    low, high = found["pruned"]["lpips_ci95"]
    assert low < found["pruned"]["lpips"] < high
    enlarged = F.interpolate(dense.float(), (64, 80), mode="bilinear")
    wanted = F.interpolate(shifted.float(), (64, 80), mode="bilinear")
    assert float(network.distances(shifted, dense)[0]) == pytest.approx(
        float(by_hand(wanted, enlarged, alexnet)[0]), rel=1e-3
    )


def test_lpips_of_videos_is_that_of_their_frames(alexnet: Path) -> None:
    network = load_network("lpips", f"alex:{alexnet}")
    dense, other = (pictures(6, seed).unflatten(0, (2, 3)) for seed in (0, 1))
    found = measure_all(
        context({"dense": dense, "pruned": other}, networks={"lpips": lambda: network}), ["lpips"]
    )
    wanted = network.distances(other.flatten(0, 1), dense.flatten(0, 1)).mean()
    assert found["pruned"]["lpips"] == pytest.approx(float(wanted))


@pytest.mark.parametrize("backbone", ["vgg", "squeeze"])
def test_the_other_backbones_of_lpips_take_torchvisions_weights(backbone: str, tmp_path: Path) -> None:
    make: Callable[..., Any] = {"vgg": torchvision.models.vgg16, "squeeze": torchvision.models.squeezenet1_1}[
        backbone
    ]
    torch.manual_seed(0)
    network = make(weights=None)
    path = tmp_path / "weights.pth"
    torch.save(
        {key: value for key, value in network.state_dict().items() if key.startswith("features")}, path
    )
    found = load_network("lpips", f"{backbone}:{path}")
    assert float(found.distances(pictures(1), pictures(1, 1))) > 0


# What is refused


@pytest.mark.parametrize(
    ("name", "spec", "expected"),
    [
        (
            "lpips",
            "resnet",
            r"'resnet' is no network of LPIPS; give alex, vgg, squeeze .* alex:/path/to/alexnet-owt",
        ),
        (
            "lpips",
            "alex:/nowhere.pth",
            r"'/nowhere.pth' are not a file; give alex:/path/to/alexnet-owt-7be5be79.pth",
        ),
        (
            "dinov2",
            "/nowhere",
            r"'/nowhere' cannot be had as a Dinov2Model .*without a network give a local folder",
        ),
        ("cmmd", "./nowhere", r"'./nowhere' cannot be had as a CLIPVisionModelWithProjection"),
        ("clip", "~/nowhere-at-all", r"cannot be had as a CLIPModel .*leave the metrics that need it out"),
    ],
)
def test_what_cannot_be_had(name: str, spec: str, expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        load_network(name, spec)


def test_a_folder_of_another_model(dinov2: Path, clip: Path, eyes: Path) -> None:
    with pytest.raises(
        ValueError, match=r"does not hold all weights of a CLIPModel: .* are missing|cannot be had"
    ):
        load_network("clip", str(eyes))
    with pytest.raises(
        ValueError, match=r"does not hold all weights of a Dinov2Model|cannot be had as a Dinov2Model"
    ):
        load_network("dinov2", str(clip))


def test_weights_of_another_backbone(alexnet: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"does not hold the torchvision weights of this backbone of LPIPS"):
        load_network("lpips", f"vgg:{alexnet}")
    (tmp_path / "broken.pth").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"broken.pth does not hold the torchvision weights"):
        load_network("lpips", f"alex:{tmp_path / 'broken.pth'}")


def test_a_clip_without_words(clip: Path, tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((clip / name).read_bytes())
    with pytest.raises(ValueError, match="cannot be had as its processor and tokenizer"):
        load_network("clip", str(tmp_path))


def test_what_metrics_need_is_named(clip: Path) -> None:
    assert needs_of(["clip_score"]) == {"sample", "prompts", "networks.clip"}
    assert needs_of(["fd_dinov2"]) == {"sample", "real", "networks.dinov2"}
    assert networks_of(["lpips", "cmmd", "fid", "clip_score"]) == ["clip", "cmmd", "lpips"]
    images = {"dense": pictures(4)}
    with pytest.raises(
        ValueError, match=r"metric 'lpips' needs the network 'lpips'; give Context.networks\['lpips'\]"
    ):
        measure_all(context(images), ["lpips"])
    with pytest.raises(ValueError, match=r"metric 'clip_score' needs Context.prompts, which is None"):
        measure_all(context(images, networks={"clip": lambda: None}), ["clip_score"])


def test_every_network_is_tried_with_a_black_image(
    clip: Path, eyes: Path, dinov2: Path, alexnet: Path
) -> None:
    for name, spec in (("clip", clip), ("cmmd", eyes), ("dinov2", dinov2), ("lpips", f"alex:{alexnet}")):
        check_network(load_network(name, str(spec)))
    facts = load_network("clip", str(clip)).facts
    assert json.loads(json.dumps(facts)) == facts
