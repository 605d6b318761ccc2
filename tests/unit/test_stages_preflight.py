"""What is refused before the first expensive stage, and what calibration is asked to gather."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DiTTransformer2DModel
from PIL import Image
from safetensors.torch import load_file, save_file

from eval.classifier import SmallClassifier, save_classifier
from pruning import checkpoint
from pruning.errors import PruningError
from pruning.recipe import Recipe
from pruning.recovery import optimizers, tracking
from pruning.settings import Depth, Networks
from pruning.stages import placement, preflight, room, smaller_forms
from pruning.stages.calibration import wanted
from pruning.stages.caveats import caveats
from pruning.stages.dryrun import dry_run
from pruning.stages.planning import make_plan
from pruning.stages.run import Run
from pruning.surgery import apply_plan
from tests.models import dit, unet2d
from tests.plans import random_plan
from tests.unit.tiny_pipelines import dit_latent
from tests.zoo import ZOO, build

NOTHING: list[str] = []


def change(recipe: Recipe, **values: Any) -> Recipe:
    """Return `recipe` with ``section__key=value`` entries changed."""
    for name, value in values.items():
        section, _, key = name.partition("__")
        if key:
            value = dataclasses.replace(getattr(recipe, section), **{key: value})
        recipe = dataclasses.replace(recipe, **{section: value})
    return recipe


@pytest.fixture
def recipe(tmp_path) -> Recipe:
    dit(sample_size=16).save_pretrained(tmp_path / "model" / "transformer")
    DDIMScheduler().save_pretrained(tmp_path / "model" / "scheduler")
    plain = Recipe(name="r", device="cpu", run_dir=str(tmp_path / "run"))
    target = dataclasses.replace(plain.prune.target, macs=0.7)
    changed = change(plain, model__source=str(tmp_path / "model"), prune__target=target)
    return change(changed, calibrate__num_samples=8)


def test_a_null_class_that_contradicts_the_model_is_refused(recipe):
    run = Run(change(recipe, model__null_class="none"))
    with pytest.raises(
        PruningError, match="'none' was asked, but DiTTransformer2DModel has the null class 10"
    ):
        _ = run.meta


def table(folder: Path, **columns: Any) -> str:
    """Write ``train`` and ``test`` parquet files of six grey images beside `columns`."""
    folder.mkdir()
    images = [Image.fromarray(np.full((16, 16), 40 * k, dtype=np.uint8)) for k in range(6)]
    for split in ("train", "test"):
        features = datasets.Features(
            {"image": datasets.Image(), **{name: datasets.Value("int64") for name in columns}}
        )
        rows = datasets.Dataset.from_dict({"image": images, **columns}, features=features)
        rows.to_parquet(str(folder / f"{split}.parquet"))
    return str(folder)


@pytest.fixture
def inception(monkeypatch) -> list[str]:
    """Stand in for loading features; what is asked for comes into the list."""
    asked = []

    class Extractor:
        def check_channels(self, channels: int) -> None:
            asked.append(f"{channels} channels")

    monkeypatch.setattr(preflight, "load_features", lambda spec: asked.append(spec) or Extractor())
    return asked


def check(recipe: Recipe, stages: list[str] | None = None) -> None:
    preflight.preflight(Run(recipe), ["evaluate", "recover"] if stages is None else stages)


def test_a_recipe_that_works_passes_and_writes_nothing(recipe, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    check(recipe)
    assert sorted(tmp_path.rglob("*")) == before


def test_other_data_than_the_digits_are_measured_on_inception(recipe, tmp_path, inception, caplog):
    caplog.set_level("INFO")
    data = table(tmp_path / "images", label=[0, 1, 2, 3, 4, 5])
    other = change(recipe, data__source=data, calibrate__num_samples=4)
    check(other)
    assert inception == ["inception", "1 channels"]
    assert "evaluate.features: inception, for the data are" in caplog.text
    warned = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert all("has 6 of the 10 classes of DiTTransformer2DModel" in text for text in warned)
    check(change(other, evaluate__metrics=["cost"]))
    assert len(inception) == 2, "no metric needs features"


def test_a_bundled_classifier_on_other_data_is_warned_of(recipe, tmp_path, caplog):
    data = table(tmp_path / "images", label=[0, 1, 2, 3, 4, 5])
    named = change(recipe, evaluate__features="bundled:models/digits-classifier")
    check(named)
    assert caveats(Run(named)) == []
    assert not [record for record in caplog.records if record.name.startswith("pruning")]
    check(change(named, data__source=data, calibrate__num_samples=4))
    assert (
        "features=bundled:models/digits-classifier was trained on the digits, but the images" in caplog.text
    )


def test_weights_of_inception_that_cannot_be_had_are_refused_before_anything_runs(
    recipe, tmp_path, monkeypatch
):
    def fail(*args: Any, **kwargs: Any) -> None:
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    with pytest.raises(
        PruningError, match=r"^evaluate\.features: the Inception weights could not be downloaded"
    ):
        check(change(recipe, evaluate__features="inception"))


def test_features_of_other_channels_are_refused_before_anything_runs(recipe, tmp_path, caplog):
    save_classifier(SmallClassifier(in_channels=3, widths=(4, 4, 4, 4), name="rgb"), tmp_path / "rgb")
    wrong = change(recipe, evaluate__features=str(tmp_path / "rgb"))
    message = r"for images of 1 channel: classifier 'rgb' takes images \(B, 3, H, W\)"
    with pytest.raises(PruningError, match=message):
        check(wrong)
    assert dry_run(Run(wrong))["plan"]
    assert "evaluate would stop at this: evaluate.features: " in caplog.text
    caplog.clear()
    check(wrong, ["recover"])
    assert "classifier 'rgb' takes images" in caplog.text


def test_networks_that_metrics_name_are_tried_before_anything_runs(recipe, tmp_path, caplog):
    caplog.set_level("INFO")
    (tmp_path / "nothing").mkdir()
    wrong = change(recipe, evaluate__metrics=["fd_dinov2"])
    wrong = change(wrong, evaluate__networks=Networks(dinov2=str(tmp_path / "nothing")))
    with pytest.raises(PruningError, match=r"^evaluate\.networks\.dinov2: .*cannot be had as a Dinov2Model"):
        check(wrong)
    dry_run(Run(wrong))
    assert "evaluate would stop at this: evaluate.networks.dinov2: " in caplog.text
    caplog.clear()
    dry_run(Run(change(recipe, evaluate__metrics=["lpips"])))
    assert "evaluate.networks.lpips: alex will be fetched when the run starts" in caplog.text


def test_a_score_of_prompts_is_refused_where_there_are_none(recipe):
    with pytest.raises(
        PruningError, match=r"^evaluate\.metrics: 'clip_score' compares images with their prompts"
    ):
        check(change(recipe, evaluate__metrics=["cost", "clip_score"]))


def test_a_dry_run_looks_for_the_splits_of_data_that_are_here(recipe, caplog):
    dry_run(Run(change(recipe, data__eval_split="validation")))
    assert "evaluate would stop at this: " in caplog.text
    assert "validation" in caplog.text
    caplog.clear()
    dry_run(Run(change(recipe, data__source="nobody/nothing", data__eval_split="validation")))
    assert not caplog.records, "the hub is not asked"


def test_a_dry_run_says_that_prompts_are_no_images(recipe, tmp_path, caplog):
    (tmp_path / "prompts.txt").write_text("\n".join("abcdefghijk"))
    prompts = change(recipe, data__source=str(tmp_path / "prompts.txt"), calibrate__provider="sampling")
    dry_run(Run(change(prompts, evaluate__metrics=["consistency", "denoising"])))
    assert not caplog.records
    dry_run(
        Run(change(prompts, evaluate__metrics=["fid"], evaluate__features="bundled:models/digits-classifier"))
    )
    assert "images are asked for, and it is text" in caplog.text


def test_a_dry_run_says_that_inception_will_be_downloaded(recipe, tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    dry_run(Run(change(recipe, evaluate__features="inception")))
    assert "the weights of Inception will be downloaded" in caplog.text


def test_a_model_that_is_pruned_already_is_warned_of(recipe, tmp_path, caplog):
    folder = tmp_path / "model" / "transformer"
    model = dit(sample_size=16)
    checkpoint.save(apply_plan(model, random_plan(model, ["ffn_channels"], seed=0)), folder)
    check(recipe)
    assert "Pruned before: the model" in caplog.text
    assert "every ratio (MACs, parameters, speed, quality) is to it" in caveats(Run(recipe))[0]


def test_an_evaluation_on_the_images_of_training_is_warned_of(recipe, caplog):
    assert not any("Not held out" in text for text in caveats(Run(recipe)))
    same = change(recipe, data__eval_split=recipe.data.split)
    check(same)
    assert "Not held out: data.eval_split=train is data.split" in caplog.text
    assert any("Not held out" in text for text in caveats(Run(same)))


@pytest.mark.parametrize("taken", [6, 1438])
def test_ranks_are_chosen_by_images_that_calibration_leaves_alone_at_other_timesteps(recipe, taken):
    run = Run(change(recipe, data__source="digits", calibrate__num_samples=taken))
    assert smaller_forms.spare(run) == (6 if taken == 6 else 0)
    fit, held_out = (
        list(smaller_forms.shown_to_layers(run, held_out=held_out)) for held_out in (False, True)
    )
    timesteps = [torch.cat([batch.timesteps for batch in batches]) for batches in (fit, held_out)]
    assert timesteps[0].shape == timesteps[1].shape
    assert (timesteps[0] != timesteps[1]).float().mean() > 0.8
    seen = [{int(i) for batch in batches for i in batch.sample_ids} for batches in (fit, held_out)]
    assert not seen[0] & seen[1] if taken == 6 else seen[0] == seen[1]


@pytest.mark.parametrize(
    ("criterion", "compensation", "said"),
    [("probe_obs", "fold", True), ("probe_obs", "least_squares", False), ("probe", "fold", False)],
)
def test_a_criterion_that_supposes_least_squares_says_so(recipe, criterion, compensation, said):
    changed = change(recipe, score__criterion=criterion, prune__compensation=compensation)
    assert any("judges what is lost after least squares" in text for text in caveats(Run(changed))) == said


def test_kinds_that_the_model_lacks_are_named_only_where_somebody_chose_them(recipe, caplog):
    caplog.set_level("INFO")
    check(recipe)
    assert "no groups of kind" not in caplog.text
    check(change(recipe, prune__kinds=["ffn_channels", "resnet_channels"]))
    assert "DiTTransformer2DModel has no groups of kind resnet_channels" in caplog.text


def test_images_without_labels_are_refused_for_a_model_with_classes(recipe, tmp_path):
    data = table(tmp_path / "images")
    with pytest.raises(
        PruningError, match=r"images\[train\] has no labels, but DiTTransformer2DModel has 10 classes"
    ):
        check(change(recipe, data__source=data, calibrate__num_samples=4))


def test_more_classes_than_the_model_has_are_refused(recipe, tmp_path):
    data = table(tmp_path / "images", label=[0, 1, 2, 3, 4, 11])
    with pytest.raises(PruningError, match="has 12 classes, the model only 10"):
        check(change(recipe, data__source=data, calibrate__num_samples=4))


def test_fewer_images_than_asked_are_refused(recipe, tmp_path):
    data = table(tmp_path / "images", label=[0, 1, 2, 3, 4, 5])
    with pytest.raises(PruningError, match="8 images asked, but the split holds 6"):
        check(change(recipe, data__source=data))


def test_an_image_that_cannot_be_decoded_is_refused(recipe, tmp_path):
    (tmp_path / "images" / "train").mkdir(parents=True)
    (tmp_path / "images" / "train" / "a.png").write_bytes(b"not an image")
    grey = change(recipe, data__source=str(tmp_path / "images"), calibrate__num_samples=1)
    unet2d(sample_size=16).save_pretrained(tmp_path / "model" / "unet")
    with pytest.raises(PruningError, match=r"row 0 .*cannot be read"):
        check(change(grey, model__subfolder="unet"), NOTHING)


def test_a_broken_image_or_label_anywhere_is_refused(recipe, tmp_path):
    data = table(tmp_path / "labels", label=[0, 1, 2, 3, 4, -1])
    with pytest.raises(PruningError, match="row 5 has the label -1"):
        check(change(recipe, data__source=data, calibrate__num_samples=2), NOTHING)
    folder = tmp_path / "images" / "train"
    folder.mkdir(parents=True)
    for k in range(5):
        Image.fromarray(np.zeros((16, 16), dtype=np.uint8)).save(folder / f"{k}.png")
    (folder / "9.png").write_bytes(b"not an image")
    unet2d(sample_size=16).save_pretrained(tmp_path / "model" / "unet")
    grey = change(recipe, data__source=str(folder.parent), calibrate__num_samples=2)
    with pytest.raises(PruningError, match=r"row 5 .*cannot be read"):
        check(change(grey, model__subfolder="unet"), NOTHING)


def test_evaluation_data_are_looked_at_only_if_there_will_be_an_evaluation(recipe):
    wrong = change(recipe, data__eval_split="validation")
    check(wrong, NOTHING)
    with pytest.raises(PruningError, match="validation"):
        check(wrong)


def test_a_target_out_of_reach_is_refused_and_the_least_is_named(recipe):
    target = dataclasses.replace(recipe.prune.target, macs=0.05)
    with pytest.raises(PruningError, match=r"target 0\.05 of the dense MACs: .*the least reachable is"):
        check(change(recipe, prune__target=target))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"tracker": "wandb"},
            r"recover\.tracker: 'wandb' needs the package 'wandb', which is not installed",
        ),
        ({"optimizer": "adamw8bit"}, r"recover\.optimizer: 'adamw8bit' needs the package 'bitsandbytes'"),
        (
            {"gradient_checkpointing": True},
            "gradient_checkpointing: DiTTransformer2DModel has no method for it",
        ),
        (
            {"method": "blocks", "eval_every": 9},
            "recovery by blocks: eval_every: 9 is of a model that is trained",
        ),
        (
            {"provider": "sampling", "num_samples": 4, "eval_every": 1, "held_out": 4},
            "held_out: 4 of 4 samples leave none to train on",
        ),
    ],
)
def test_training_that_cannot_be_is_refused_before_it_starts(recipe, monkeypatch, changes, message):
    for module in (tracking, optimizers):
        monkeypatch.setattr(module, "find_spec", lambda package: None)
    monkeypatch.setattr(DiTTransformer2DModel, "_supports_gradient_checkpointing", False)
    wrong = change(recipe, **{f"recover__{key}": value for key, value in changes.items()})
    check(change(wrong, recover__enabled=False))
    with pytest.raises(PruningError, match=message):
        check(wrong)


def test_a_batch_that_cannot_be_split_is_refused(recipe):
    odd = change(recipe, recover__gradient_accumulation=3)
    check(change(odd, recover__enabled=False))
    with pytest.raises(PruningError, match=r"recover\.batch_size: 64 must be a multiple of .* 3 x 1 = 3"):
        check(odd)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("device", "xpu"),
        ("evaluate__num_steps", 5000),
        ("evaluate__sampler", "NoScheduler"),
        ("calibrate__timestep_buckets", 1001),
        ("data__resolution", 8),
        ("evaluate__num_samples", 3),
        ("evaluate__num_real", 2),
    ],
)
def test_what_device_scheduler_and_model_cannot_do_is_refused_with_its_key(recipe, key, value):
    if value == "xpu" and torch.xpu.is_available():
        pytest.skip("there is such a device")
    run = Run(change(recipe, **{key: value}), progress=False)
    with pytest.raises(PruningError, match=rf"^{key.replace('__', '.')}: .*{value}"):
        preflight.preflight(run, ["evaluate"])
    assert not run.folder.path.exists()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"score__criterion": "diff_pruning", "calibrate__provider": "sampling"},
            r"calibrate\.provider: .*'diff_pruning' \(score\.criterion\)",
        ),
        (
            {
                "score__criterion": "obs",
                "calibrate__provider": "sampling",
                "calibrate__criteria": ["taylor"],
            },
            r"calibrate\.provider: .*'taylor' \(calibrate\.criteria\)",
        ),
        ({"score__criterion": "block_change"}, r"score\.criterion: .*kind 'blocks' only"),
        (
            {"calibrate__timestep_weights": "sampler", "calibrate__num_steps": 1},
            r"calibrate\.timestep_weights: .*no step of 1 falls",
        ),
    ],
)
def test_what_a_later_stage_would_stop_at_is_refused_before_the_first(recipe, changed, message):
    run = Run(change(recipe, **changed), progress=False)
    with pytest.raises(PruningError, match=message):
        preflight.preflight(run, ["calibrate", "score"])
    assert not run.folder.path.exists()


def test_a_model_without_scheduler_is_refused(recipe, tmp_path):
    (tmp_path / "model" / "scheduler" / "scheduler_config.json").unlink()
    with pytest.raises(PruningError, match="has no scheduler"):
        check(recipe)


def cut_short(weights: Path) -> None:
    weights.write_bytes(weights.read_bytes()[:-1000])


def with_nan(weights: Path) -> None:
    tensors = load_file(weights)
    tensors["pos_embed.proj.bias"][0] = torch.nan
    save_file(tensors, weights, {"format": "pt"})


def without_a_tensor(weights: Path) -> None:
    tensors = load_file(weights)
    del tensors["pos_embed.proj.bias"]
    save_file(tensors, weights, {"format": "pt"})


def of_another_shape(weights: Path) -> None:
    tensors = load_file(weights)
    tensors["pos_embed.proj.bias"] = torch.zeros(3)
    save_file(tensors, weights, {"format": "pt"})


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (cut_short, "cannot be loaded"),
        (with_nan, r"'pos_embed\.proj\.bias' holds NaN"),
        (without_a_tensor, r"lack 'pos_embed\.proj\.bias'"),
        (of_another_shape, "cannot be loaded"),
        (Path.unlink, "cannot be loaded"),
    ],
)
def test_broken_weights_are_refused_before_anything_is_written(recipe, tmp_path, spoil, message):
    spoil(tmp_path / "model" / "transformer" / "diffusion_pytorch_model.safetensors")
    run = Run(recipe, progress=False)
    with pytest.raises(PruningError, match=message), run.workspace.held():
        preflight.preflight(run, ["calibrate"])
    assert not run.folder.path.exists()


def test_a_missing_variant_is_refused(recipe):
    with pytest.raises(PruningError, match="fp16"):
        check(change(recipe, model__variant="fp16"), ["calibrate"])


def test_what_the_first_stage_has_seen_is_not_loaded_again(recipe, monkeypatch):
    monkeypatch.setattr("pruning.models.load_denoiser", lambda *a, **k: pytest.fail("loaded"))
    check(recipe)


def test_images_that_do_not_become_the_models_latents_are_refused(recipe, tmp_path):
    dit_latent().save_pretrained(tmp_path / "latent")
    latent = change(recipe, model__source=str(tmp_path / "latent"), calibrate__num_samples=4)
    check(latent, ["calibrate"])
    check(change(latent, data__resolution=16), ["calibrate"])
    message = r"data\.resolution: 24 pixels become 12 x 12 latents \(2 pixels each\).* samples 8 x 8; use 16,"
    with pytest.raises(PruningError, match=message):
        check(change(latent, data__resolution=24), ["calibrate"])


def test_a_full_disk_is_refused(recipe, monkeypatch):
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    with pytest.raises(PruningError, match=r"cannot write the run 'r' in .*1000|are needed and .* are free"):
        check(recipe)


def test_second_moments_that_do_not_fit_into_memory_are_refused(recipe, monkeypatch):
    message = r"'probe_obs' with .* sums 80\.6 kB of group '.*' alone, and calibration may hold {}; give it more, use"
    with pytest.raises(PruningError, match=message.format(r"50\.0 kB \(calibrate.memory_gb\)")):
        check(change(recipe, calibrate__memory_gb=5e-5))
    monkeypatch.setattr(placement, "usable_bytes", lambda device: 60_000)
    with pytest.raises(PruningError, match=message.format(r"60\.0 kB")):
        check(recipe)
    check(change(recipe, score__criterion="fluctuation", prune__compensation="fold"))


def test_the_bytes_of_statistics_are_counted_by_hand(recipe):
    bare = change(recipe, score__criterion="obs", calibrate__diagnostics=False)
    run, buckets = Run(bare), bare.calibrate.timestep_buckets
    # Three blocks; heads read 32 columns, the feed-forward 128: a second moment each, and a sum and a weight by bucket.
    triangles, others = zip(
        *(((width + 1) * width // 2, buckets * (width + 1)) for width in (32, 128)), strict=True
    )
    assert room.statistics_bytes(run, run.groups) == 3 * 8 * (sum(triangles) + sum(others))
    assert room.statistics_bytes(run, run.groups, kept=True) == 3 * (4 * sum(triangles) + 8 * sum(others))
    weighted = Run(change(bare, score__weighting="on"))
    assert room.statistics_bytes(weighted, run.groups) == 2 * room.statistics_bytes(run, run.groups)


def test_calibration_gathers_what_criterion_compensation_and_report_need(recipe):
    bare = change(recipe, score__criterion="random", prune__compensation="none", calibrate__diagnostics=False)
    assert wanted(Run(bare)).needs == ()
    assert set(wanted(Run(change(bare, prune__compensation="fold"))).needs) == {"input_sum", "row_weight"}
    drawn = wanted(Run(change(bare, calibrate__diagnostics=True)))
    assert "sink_mass" in {*drawn.needs} & {*drawn.drawn}
    both = wanted(Run(change(bare, calibrate__diagnostics=True, score__criterion="sink_mass")))
    assert "sink_mass" in {*both.needs} - {*both.drawn}
    more = wanted(Run(change(bare, calibrate__criteria=["taylor", "sink"])))
    assert "taylor" in more.needs
    assert more.variants == ("on",)
    assert wanted(Run(change(bare, score__weighting="permuted"))).variants == ("permuted",)


def test_a_dry_run_counts_by_kind(recipe):
    found = dry_run(Run(recipe))
    rows = {row["kind"]: row for row in found["kinds"]}
    assert (rows["attention_heads"]["units"], rows["ffn_channels"]["units"]) == (12, 384)
    gone = sum(cut["total"] - cut["kept"] for cut in found["groups"] if cut["kind"] == "ffn_channels")
    assert rows["ffn_channels"]["removed"] == gone
    assert found["plan"]["macs_ratio"] == pytest.approx(0.7, abs=0.01)


def test_only_the_stage_plan_measures_sets_of_blocks(recipe, monkeypatch):
    def refuse(*args: Any, **options: Any) -> None:
        raise AssertionError("sets of blocks were measured")

    monkeypatch.setattr("pruning.stages.depth.OutputChange", refuse)
    searched = change(recipe, prune__kinds=["ffn_channels", "blocks"], prune__depth=Depth(budget=5))
    assert dry_run(Run(searched))["depth"] == {
        "sets": 5,
        "forwards": 6 * 8 * 8,
    }  # of the 8 images, at 8 timesteps
    assert dry_run(Run(recipe))["depth"] is None
    assert "depth" not in make_plan(Run(searched), None).meta
    preflight.check_model(Run(searched))


def test_a_criterion_that_reads_attention_needs_weights_of_every_head(tmp_path):
    build(ZOO["sana"]).save_pretrained(tmp_path / "transformer")
    recipe = change(
        Recipe(name="r", device="cpu", run_dir=str(tmp_path / "run")), model__source=str(tmp_path)
    )
    recipe = change(recipe, prune__target=dataclasses.replace(recipe.prune.target, ratio=0.25))
    preflight.check_model(Run(recipe))
    with pytest.raises(
        PruningError,
        match=r"score\.criterion: 'sink_mass' reads attention weights, and the linear attention "
        r"'transformer_blocks\.0\.attn1' forms none \(4 of 8 groups",
    ):
        preflight.check_model(Run(change(recipe, score__criterion="sink_mass")))


def test_memory_that_the_process_itself_takes_is_refused_before_the_work(recipe):
    message = (
        r"calibrate\.memory_gb: of 100 kB the process holds .* already .* of group '.*' alone are 80\.6 kB"
    )
    with pytest.raises(PruningError, match=message):
        check(change(recipe, calibrate__memory_gb=1e-4), ["calibrate"])
    check(change(recipe, calibrate__memory_gb=1e-4), ["score"])  # what was measured is not measured again
