"""A dry run leaves out what it does not need of the libraries, and must say the same with less."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pruning.cli import main
from pruning.cli.lean import lean
from tests.recipes import REAL, write_folder
from tests.unit.test_cli import DIT

SLOW = ("peft", "transformers", "torch._dynamo", "torchvision", "scipy.stats")


def python(code: str, folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_dry_run_says_the_same_with_less(tmp_path, capsys, monkeypatch):
    (tmp_path / "dit.json").write_text(json.dumps(DIT))
    words = [
        "run",
        "quickstart",
        "--dry-run",
        "--json",
        "model.source=dit.json",
        "evaluate.sampler=LMSDiscrete",
    ]
    code = (
        f"import sys\nfrom pruning.cli import main\nassert main({words!r}) == 0\n"
        f"print([name for name in {SLOW} if name in sys.modules])\n"
        "from diffusers import CosmosTransformer3DModel, DDIMScheduler, DPMSolverMultistepScheduler\n"
        "print(len(DPMSolverMultistepScheduler(use_beta_sigmas=True).timesteps))\n"
        "from diffusers.models.transformers import transformer_cosmos\n"
        "print(transformer_cosmos.transforms.InterpolationMode.NEAREST.value)\n"
        "import peft, torch, torch._dynamo.utils\n"
        "print(torch.compile(lambda x: x + 1, backend='eager')(torch.ones(())).item())\n"
    )
    found, *rest = python(code, tmp_path).splitlines()
    assert rest == ["[]", "1000", "nearest", "2.0"]
    monkeypatch.chdir(tmp_path)
    assert main(words) == 0
    assert json.loads(found) == json.loads(capsys.readouterr().out)


def test_what_needs_all_gets_all(tmp_path):
    code = (
        "from pruning.cli.lean import lean\ncalls = []\n"
        "def look():\n"
        "    calls.append(1)\n"
        "    import diffusers.models.modeling_utils\n"
        "    import torch._dynamo.utils, transformers.utils\n"
        "    return 'seen'\n"
        "print(lean(look), len(calls))\n"
    )
    assert python(code, tmp_path) == "seen 2\n"


def test_an_error_of_the_user_is_none_of_the_imports():
    with pytest.raises(ValueError, match="asked"):
        lean(lambda: (_ for _ in ()).throw(ValueError("asked")))


def test_a_dry_run_of_a_pipeline_knows_its_class(tmp_path):
    write_folder(REAL["pixart-sigma"], tmp_path / "model")
    words = ["run", "pixart-sigma", "--dry-run", "--json", "model.source=model"]
    code = f"from pruning.cli import main\nassert main({words!r}) == 0\n"
    assert json.loads(python(code, tmp_path))["class"] == "PixArtTransformer2DModel"
