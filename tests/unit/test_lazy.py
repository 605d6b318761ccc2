"""Packages that import what is asked of them when it is asked for."""

from __future__ import annotations

import subprocess
import sys

import pytest

import pruning.data
import pruning.models


@pytest.mark.parametrize("package", [pruning.data, pruning.models])
def test_every_public_name_is_there_and_no_other(package):
    assert {"open_images", "load_denoiser"} & {*dir(package)}
    assert all(getattr(package, name) is not None for name in dir(package))
    with pytest.raises(AttributeError, match=f"module '{package.__name__}' has no attribute 'nothing'"):
        _ = package.nothing


def test_what_the_command_needs_early_comes_without_torch():
    modules = "pruning.data.folder, pruning.data.table_files, pruning.data.identity, pruning.models.sources"
    code = f"import sys, {modules}; print('torch' in sys.modules or 'datasets' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
