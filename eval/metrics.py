"""Which metrics there are: read from the files of this package, which imports nothing."""

from __future__ import annotations

import ast
import functools
from pathlib import Path

FOLDER = Path(__file__).parent


@functools.cache
def available_metrics(folder: Path = FOLDER) -> dict[str, str]:
    """Return the metrics, the files of `folder` that define ``compute``, and the first line of what each says."""
    files = {path.stem: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.py"))}
    return {
        name: (ast.get_docstring(tree) or "").partition("\n")[0]
        for name, tree in files.items()
        if any(isinstance(node, ast.FunctionDef) and node.name == "compute" for node in tree.body)
    }
