"""Plain from_pretrained, in every way that diffusers loads a model; and entries that lie."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import pytest
import torch
from diffusers import AutoModel, DDPMPipeline, DDPMScheduler, UNet2DConditionModel, UNet2DModel
from diffusers.training_utils import EMAModel

from pruning import checkpoint, hook
from pruning.errors import PruningError
from pruning.groups import KINDS, find_groups
from pruning.surgery import apply_plan
from pruning.types import PRUNING_KEY, PruningPlan
from tests.models import MODELS, dit, run, unet2d
from tests.plans import random_plan


@pytest.fixture(autouse=True)
def _hook():
    hook.install_hook()
    yield
    hook.install_hook()


@pytest.fixture
def pruned():
    model = unet2d()
    return apply_plan(model, random_plan(model, KINDS, seed=2))


def test_auto_model_and_pipeline(pruned, tmp_path):
    pruned.save_pretrained(tmp_path / "model")
    assert torch.equal(run(AutoModel.from_pretrained(str(tmp_path / "model"))), run(pruned))
    DDPMPipeline(unet=pruned, scheduler=DDPMScheduler()).save_pretrained(tmp_path / "pipeline")
    pipeline = DDPMPipeline.from_pretrained(tmp_path / "pipeline")
    assert torch.equal(run(pipeline.unet), run(pruned))


@pytest.mark.parametrize(
    "options",
    [
        {"low_cpu_mem_usage": False},
        {"low_cpu_mem_usage": True},
        {"device_map": {"": "cpu"}},
        {"torch_dtype": torch.bfloat16},
    ],
)
def test_loading_options(pruned, tmp_path, options):
    pruned.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    loaded = UNet2DModel.from_pretrained(tmp_path, **options)
    expected = pruned.to(options.get("torch_dtype", torch.float32)).state_dict()
    assert loaded.state_dict().keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in loaded.state_dict().items())


def test_saving_in_bf16_leaves_the_model_alone(pruned, tmp_path):
    before = {name: p.dtype for name, p in pruned.named_parameters()}
    checkpoint.save(pruned, tmp_path, dtype=torch.bfloat16)
    assert {name: p.dtype for name, p in pruned.named_parameters()} == before
    loaded = checkpoint.load(tmp_path, dtype=torch.bfloat16)
    assert all(
        torch.equal(p, q.bfloat16()) for p, q in zip(loaded.parameters(), pruned.parameters(), strict=True)
    )


def test_ema_and_resave(pruned, tmp_path):
    ema = EMAModel(pruned.parameters(), model_cls=UNet2DModel, model_config=pruned.config)
    ema.save_pretrained(tmp_path / "ema")
    again = EMAModel.from_pretrained(tmp_path / "ema", UNet2DModel)
    assert [p.shape for p in again.shadow_params] == [p.shape for p in pruned.parameters()]
    UNet2DModel.from_pretrained(tmp_path / "ema").save_pretrained(tmp_path / "again")
    assert torch.equal(run(UNet2DModel.from_pretrained(tmp_path / "again")), run(pruned))


def test_pruning_twice(tmp_path):
    model = MODELS["unet2d-condition-deep"]()
    apply_plan(model, random_plan(model, KINDS, seed=4))
    apply_plan(model, random_plan(model, KINDS, seed=5))
    model.save_pretrained(tmp_path)
    assert torch.equal(run(UNet2DConditionModel.from_pretrained(tmp_path)), run(model))
    assert len(model.config[PRUNING_KEY]["earlier_plans"]) == 1


def test_depth_of_a_dit_is_plain_config_and_widths_follow_their_blocks(tmp_path):
    model = dit(num_layers=4)
    depth = PruningPlan(removed_blocks=("transformer_blocks.1",))
    only_depth = apply_plan(copy.deepcopy(model), depth)
    assert only_depth.config.num_layers == 3
    assert PRUNING_KEY not in only_depth.config
    kept = {
        "transformer_blocks.3.ff:ffn_channels": (0, 5),
        "transformer_blocks.0.attn1:attention_heads": (2,),
    }
    both = apply_plan(model, PruningPlan(kept=kept, removed_blocks=("transformer_blocks.1",)))
    assert "transformer_blocks.2.ff.net.2" in both.config[PRUNING_KEY]["modules"]
    both.save_pretrained(tmp_path)
    assert torch.equal(run(type(model).from_pretrained(tmp_path)), run(both))


def test_without_the_hook_loading_fails_but_our_load_works(pruned, tmp_path):
    pruned.save_pretrained(tmp_path)
    hook.disable_hooks()
    assert not hook.hook_installed()
    with pytest.raises((RuntimeError, ValueError), match=r"shape|size"):
        UNet2DModel.from_pretrained(tmp_path)
    assert torch.equal(run(checkpoint.load(tmp_path)), run(pruned))
    assert not hook.hook_installed()


def test_another_class_refuses(pruned):
    with pytest.raises(PruningError, match="made for 'UNet2DModel', not for UNet2DConditionModel"):
        UNet2DConditionModel.from_config(dict(pruned.config))


def test_plan_of_another_model_is_refused():
    plan = random_plan(dit(), KINDS, 0)
    with pytest.raises(PruningError, match="plan was made for the architecture"):
        apply_plan(dit(num_layers=2), plan)


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (PruningPlan(kept={"nowhere:ffn_channels": (0,)}), "'nowhere:ffn_channels', which is not a group"),
        (PruningPlan(kept={"transformer_blocks.0.ff:ffn_channels": ()}), "keeps no unit of"),
        (PruningPlan(kept={"transformer_blocks.0.ff:ffn_channels": (0, 128)}), r"in 0\.\.127"),
        (PruningPlan(removed_blocks=("transformer_blocks.0",)), "not a removable block"),
    ],
)
def test_plans_that_do_not_fit_leave_the_model_whole(plan, message):
    model = dit()
    before = run(model)
    with pytest.raises(PruningError, match=message):
        apply_plan(model, plan)
    assert torch.equal(run(model), before)


def _entry(config):
    return config[PRUNING_KEY]


def _module(config, path="down_blocks.0.resnets.0.conv2"):
    return config[PRUNING_KEY]["modules"][path]


TAMPERED = {
    "version": (lambda c: _entry(c).update(format_version=7), "format_version: 7 is unknown"),
    "version type": (lambda c: _entry(c).update(format_version=True), "format_version: True is unknown"),
    "entry type": (lambda c: c.update({PRUNING_KEY: ["x"]}), "must be a mapping, found list"),
    "modules type": (lambda c: _entry(c).update(modules=[]), "must map module paths"),
    "blocks type": (lambda c: _entry(c).update(removed_blocks="mid_block"), "must be a list of module paths"),
    "outside path": (
        lambda c: _entry(c)["modules"].update({"__class__.__init__": {}}),
        "'__class__.__init__' is not a module",
    ),
    "not removable": (lambda c: _entry(c)["removed_blocks"].append("conv_in"), "not a removable block"),
    "record type": (
        lambda c: _entry(c)["modules"].update({"conv_in": 3}),
        "must hold 'attributes', 'parameters' and",
    ),
    "record key": (lambda c: _module(c).update(code="print()"), "must hold 'attributes', 'parameters' and"),
    "attribute name": (
        lambda c: _module(c).update(attributes={"training": 1}),
        "'training' is not a size of Conv2d",
    ),
    "attribute dunder": (
        lambda c: _module(c).update(attributes={"__dict__": 1}),
        "'__dict__' is not a size of Conv2d",
    ),
    "negative": (
        lambda c: _module(c)["parameters"].update(weight=[16, -4, 3, 3]),
        "list of positive integers",
    ),
    "huge": (
        lambda c: _module(c)["parameters"].update(weight=[16, 10**12, 3, 3]),
        "does not fit into the stock",
    ),
    "float": (lambda c: _module(c)["parameters"].update(weight=[16, 4.0, 3, 3]), "list of positive integers"),
    "rank": (lambda c: _module(c)["parameters"].update(weight=[16]), "does not fit into the stock"),
    "new parameter": (lambda c: _module(c)["parameters"].update(extra=[4]), "has no such parameter"),
    "contradiction": (
        lambda c: _module(c)["parameters"].update(weight=[16, 4, 3, 3]),
        "contradict each other",
    ),
    "norm groups": (
        lambda c: _module(c, "down_blocks.0.resnets.0.norm2")["attributes"].update(num_groups=4),
        "contradict each other",
    ),
    "class name": (lambda c: _entry(c).update(class_name=[]), "made for \\[\\], not for UNet2DModel"),
    "nested blocks": (
        lambda c: _entry(c)["removed_blocks"].extend(["mid_block", "mid_block.resnets.0"]),
        "named twice, or lies in another",
    ),
    "not of a group": (
        lambda c: _entry(c)["modules"].update({"conv_in": {"parameters": {"weight": [16, 1, 1, 3]}}}),
        "conv_in'\\].weight: dimension 2 fell from 3 to 1",
    ),
    "inputs": (lambda c: _module(c).update(inputs={"kept": [0], "units": 2}), "has entries for each unit"),
    "huge heads": (
        lambda c: (
            _entry(c)["modules"].setdefault("mid_block.attentions.0", {}).update(attributes={"heads": 10**9})
        ),
        r"must be an integer in 1\.\.4",
    ),
}


@pytest.mark.parametrize("case", list(TAMPERED))
def test_tampered_entries_get_a_clear_error(case, tmp_path):
    model = unet2d()
    kept = {"down_blocks.0.resnets.0:resnet_channels": (0, 2, 3)}
    apply_plan(model, PruningPlan(kept=kept)).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    tamper, message = TAMPERED[case]
    tamper(config)
    path.write_text(json.dumps(config))
    for load in (checkpoint.load, UNet2DModel.from_pretrained):
        with pytest.raises(PruningError, match=message):
            load(tmp_path)


def test_folders_that_are_no_checkpoint(tmp_path):
    with pytest.raises(PruningError, match="holds no denoiser"):
        checkpoint.load(tmp_path)
    (tmp_path / "config.json").write_text('{"_class_name": "DDPMScheduler"}')
    with pytest.raises(PruningError, match="the class 'DDPMScheduler' is not a ModelMixin"):
        checkpoint.load(tmp_path)


def test_plans_round_trip_and_bad_plan_files_are_named(tmp_path):
    plan = replace(random_plan(dit(), KINDS, 1), meta={"asked": "half"})
    plan.save(tmp_path / "plan.json")
    assert PruningPlan.load(tmp_path / "plan.json") == plan
    for change, message in [
        ({"version": 9}, "version must be 1, found 9"),
        ({"kept": {"a": [2, 1]}}, r"kept\['a'\] must be a sorted list"),
        ({"kept": {"a": [-1]}}, r"kept\['a'\] must be a sorted list"),
        ({"removed_blocks": [1]}, "'removed_blocks' must be a list of module paths"),
        ({"removed_blocks": ["a", "a"]}, "names a block twice"),
    ]:
        with pytest.raises(PruningError, match=message):
            PruningPlan.from_dict({**plan.to_dict(), **change})
    for junk in (b"{", b"\xff\xfe", b"[" * 100_000):
        (tmp_path / "plan.json").write_bytes(junk)
        with pytest.raises(PruningError, match="not JSON"):
            PruningPlan.load(tmp_path / "plan.json")


def test_a_config_does_not_say_where_its_model_lay(tmp_path):
    folders = [tmp_path / name for name in ("one", "other")]
    model = dit()
    for folder in folders:
        model.save_pretrained(folder)
        checkpoint.save(checkpoint.load(folder), folder / "again")
    configs = [(folder / "again" / "config.json").read_bytes() for folder in folders]
    assert configs[0] == configs[1]
    assert str(tmp_path).encode() not in configs[0]


def test_a_model_is_not_saved_over_a_file(tmp_path):
    (tmp_path / "notes").write_text("mine")
    with pytest.raises(PruningError, match=r"notes: it is a file; name a folder"):
        checkpoint.save(dit(), tmp_path / "notes")
    assert (tmp_path / "notes").read_text() == "mine"


def test_groups_on_the_meta_device_equal_those_of_the_real_model():
    model = MODELS["unet2d-condition"]()
    assert find_groups(copy.deepcopy(model).to("meta")) == find_groups(model)
    with pytest.raises(PruningError, match="unknown group kind 'heads'; valid: attention_heads"):
        find_groups(model, ["heads"])
    with pytest.raises(PruningError, match="has no prunable groups of kind resnet_channels"):
        find_groups(dit(), ["resnet_channels"])
