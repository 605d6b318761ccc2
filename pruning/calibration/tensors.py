"""Named tensors in a safetensors file with JSON meta data in its header, never half written."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from pruning.errors import PruningError
from pruning.files import write_errors, written_whole

FORMAT = "sinkprune-calibration-4"
HEADER = "sinkprune"
"""The one entry of the file's meta data: safetensors writes several in random order, and equal content shall be equal
bytes."""


def write_tensors(
    path: str | Path, content: str, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]
) -> None:
    """Write named tensors and JSON meta data; the file appears whole or not at all, equal content as equal bytes.

    Raises:
        PruningError: If the folder cannot be written.
    """
    path = Path(path)
    header = json.dumps({"format": FORMAT, "content": content, "meta": meta}, sort_keys=True)
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with write_errors(content, path.parent, "Nothing has been changed"):
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(path) as temporary:
            save_file(whole, temporary, {HEADER: header})


def read_tensors(path: str | Path, content: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a file written by `write_tensors`; returns tensors and meta data.

    Raises:
        PruningError: If it is missing, broken or of another kind.
    """
    with opened(Path(path), content) as (file, meta):
        return {name: file.get_tensor(name) for name in file.keys()}, meta  # noqa: SIM118


@contextmanager
def opened(path: Path, content: str) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Yield a file written by `write_tensors`, open, and its meta data; errors as those of `read_tensors`."""
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {}).get(HEADER, "{}"))
            if header.get("format") != FORMAT or header.get("content") != content:
                raise PruningError(
                    f"{path} holds {header.get('content')!r} of format {header.get('format')!r}; "
                    f"expected {content!r} of {FORMAT!r}; make it again"
                )
            yield file, header["meta"]
    except (OSError, SafetensorError, KeyError, json.JSONDecodeError) as error:
        raise PruningError(f"cannot read {content} from {path}: {error}; calibrate again") from error
