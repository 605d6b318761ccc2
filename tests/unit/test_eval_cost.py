"""Parameters, MACs, bytes: counted by hand."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from eval.cost import LiveBytes, count_macs, count_params, peak_memory, saved_bytes, weight_bytes
from eval.run import measure_all
from eval.types import Context, Subject
from tests.models import dit, unet2d


def measured(context: Context) -> dict[str, dict[str, Any]]:
    return measure_all(context, ["cost"])


def test_macs_of_a_linear_layer() -> None:
    layer = nn.Linear(7, 5)
    assert count_macs(lambda: layer(torch.zeros(3, 7))) == 3 * 7 * 5


def test_macs_of_a_convolution() -> None:
    layer = nn.Conv2d(2, 6, 3, padding=1, groups=2)
    assert count_macs(lambda: layer(torch.zeros(1, 2, 8, 8))) == 8 * 8 * 6 * (2 // 2) * 9


def test_macs_of_attention_are_counted() -> None:
    batch, heads, queries, keys, dim = 2, 3, 10, 7, 4
    query = torch.zeros(batch, heads, queries, dim)
    key = torch.zeros(batch, heads, keys, dim)
    got = count_macs(lambda: F.scaled_dot_product_attention(query, key, key))
    assert got == 2 * batch * heads * queries * keys * dim  # the scores and the weighted sum


def test_shared_parameters_count_once() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    assert count_params(model) == 16 + 4 + 4
    assert weight_bytes(model) == 4 * (16 + 4 + 4)
    assert weight_bytes(model.to(torch.bfloat16)) == 2 * (16 + 4 + 4)


def test_live_bytes_by_hand() -> None:
    x = torch.zeros(100)
    with LiveBytes() as mode:
        a = x + 1  # 400
        b = a * 2  # 800
        del a  # 400
        view = b.reshape(10, 10)  # a view is nothing new
        view.add_(1)  # nor is writing in place, here or in what came from outside
        x.mul_(2)
        c = torch.cat([b, b])  # 400 + 800
        assert mode.live == 1200
        del view, b, c
        assert mode.live == 0
        d = torch.zeros(200)  # 800, below the peak
    del d
    assert mode.peak == 1200


def test_peak_memory_adds_the_weights() -> None:
    model = nn.Linear(10, 10, bias=False)
    x = torch.zeros(5, 10)
    assert peak_memory(model, lambda: model(x)) == (400 + 200, peak_memory(model, lambda: model(x))[1])
    assert "live tensor bytes" in peak_memory(model, lambda: model(x))[1]


def test_peak_memory_follows_what_is_kept() -> None:
    model = nn.Linear(10, 10, bias=False)
    x = torch.zeros(5, 10)

    def chained() -> Tensor:
        y = x
        for _ in range(6):
            y = model(y)
        return y

    def hoarded() -> list[Tensor]:
        return [model(x) for _ in range(6)]

    assert peak_memory(model, chained)[0] == 400 + 2 * 200
    assert peak_memory(model, hoarded)[0] == 400 + 6 * 200


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("build", [dit, unet2d, nn.BatchNorm2d])
def test_saved_bytes_are_those_of_the_file(build, dtype: torch.dtype, tmp_path: Path) -> None:
    model = build(8) if build is nn.BatchNorm2d else build()  # one of its buffers is an integer
    size = saved_bytes(model, dtype)
    with torch.device("meta"):
        assert saved_bytes(copy.deepcopy(model).to("meta"), dtype) == size
    state = {name: t.to(dtype) if t.is_floating_point() else t for name, t in model.state_dict().items()}
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert size == (tmp_path / "model.safetensors").stat().st_size


def test_measured_by_subject() -> None:
    models = {"dense": nn.Linear(8, 8).eval(), "slim": nn.Sequential(nn.Linear(8, 2), nn.Linear(2, 8)).eval()}
    subjects = {
        name: Subject(predict=lambda call, m=m: m(call["sample"]), model=m) for name, m in models.items()
    }
    subjects["told"] = replace(subjects["slim"], file_bytes=99)
    result = measured(Context(subjects, call=lambda batch: {"sample": torch.zeros(batch, 8)}))
    assert (result["dense"]["params"], result["dense"]["macs"]) == (72, 64)
    assert (result["slim"]["params"], result["slim"]["macs"]) == (18 + 24, 32)
    assert result["slim"]["file_bytes"] is None
    assert result["told"]["file_bytes"] == 99
    assert result["dense"]["weight_bytes"] == 72 * 4
    assert "attention is counted" in result["dense"]["macs_method"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_peak_memory_on_cuda_leaves_other_models_out() -> None:
    model = nn.Linear(1024, 1024, bias=False).cuda()
    other = torch.zeros(2**24, device="cuda")
    x = torch.zeros(1024, 1024, device="cuda")
    peak, method = peak_memory(model, lambda: model(x))
    assert "CUDA allocator" in method
    assert 2 * 2**22 <= peak < other.untyped_storage().nbytes()
