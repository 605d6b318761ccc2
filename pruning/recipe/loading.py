"""From a YAML file and overrides to a `Recipe`; the only user of OmegaConf.

Keys and types of all values are looked at first (`leaves.typed`), then whether they make sense (`Section.problems`);
either reports all that it finds at once.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pruning.errors import PruningError
from pruning.files import expanded
from pruning.models.sources import bundled_root
from pruning.recipe.leaves import typed
from pruning.recipe.reading import COMMAND_LINE, read_overrides, read_yaml
from pruning.recipe.schema import Recipe
from pruning.registry import did_you_mean
from pruning.settings.protocols import PROTOCOLS


def bundled_recipes() -> dict[str, Path]:
    """Return the bundled recipes by name, sorted."""
    return {path.stem: path for path in sorted(bundled_root().glob("*.yaml"))}


def find_recipe(argument: str | Path) -> Path:
    """Return the file of a recipe.

    Args:
        argument: A path of a YAML file; a run directory (its own ``recipe.yaml`` is taken); or the name of a
            bundled recipe, written ``quickstart``, ``quickstart.yaml`` or ``recipes/quickstart.yaml``.

    Raises:
        PruningError: If there is no such recipe; the message lists the bundled ones.
    """
    path = expanded(argument)
    if path.is_dir() and (path / "recipe.yaml").is_file():
        return path / "recipe.yaml"
    if path.is_file():
        return path
    bundled = bundled_recipes()
    name = path.name.removesuffix(".yaml")
    if path.parent in (Path(), Path("recipes")) and name in bundled:
        return bundled[name]
    found = "a folder without a recipe.yaml" if path.is_dir() else "neither a file nor a run directory"
    raise PruningError(
        f"no recipe {str(argument)!r}: it is {found}, and none of {', '.join(bundled)}{did_you_mean(name, bundled)}"
    )


def load_recipe(argument: str | Path, overrides: Sequence[str] = (), *, check: bool = True) -> Recipe:
    """Read a recipe, put `overrides` on top, and check all of it.

    A target on the command line takes the place of the recipe's, whichever of the three either is.

    Args:
        argument: What `find_recipe` takes.
        overrides: ``key.path=value`` entries; text as it stands, other values in YAML.
        check: Also check that the values make sense.

    Raises:
        PruningError: Naming every unknown key with its nearest valid one, every value of a wrong type, or
            every value that makes no sense, each with the place it was written at.
    """
    path = find_recipe(argument)
    trees = [(str(path), read_yaml(path)), *((COMMAND_LINE, tree) for tree in read_overrides(overrides))]
    values, problems = [], []
    for place, tree in trees:
        found, misfits = typed(tree)
        values.append(found)
        problems += [f"{place}: {misfit}" for misfit in misfits]
    _refuse(problems)
    written, *asked = values
    if expanded(argument).is_dir():  # wherever a run directory was moved to, it is that run's
        written["run_dir"] = _escaped(str(argument))
    if any(entry.get("prune", {}).get("target") for entry in asked):
        written.get("prune", {}).pop("target", None)
    try:
        layers = (_of_protocol(written), written, _of_protocol(*asked), *asked)
        recipe = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Recipe), *layers))
    except OmegaConfBaseException as error:
        reason = str(error).splitlines()[0]
        raise PruningError(f"{path}: {getattr(error, 'full_key', None) or 'recipe'}: {reason}") from error
    assert isinstance(recipe, Recipe)
    if check:
        where = [entry.split("=", 1)[0] for entry in overrides]
        problems = recipe.problems()
        _refuse([f"{COMMAND_LINE if _is_of(key, where) else path}: {key}: {text}" for key, text in problems])
    return recipe


def _of_protocol(*trees: dict[str, Any]) -> dict[str, Any]:
    """Return what the protocol of evaluation that the trees name says: it goes before all that stands elsewhere.

    One that there is not is left to the checks.
    """
    named = [section["protocol"] for tree in trees if "protocol" in (section := tree.get("evaluate", {}))]
    found = PROTOCOLS.get(named[-1]) if named else None
    return {} if found is None else {"evaluate": dict(found.knobs)}


def read_arguments(overrides: Sequence[str]) -> dict[str, Any]:
    """Return arguments of a pipeline's call from ``name=value`` entries, as they would stand under ``pipeline``.

    Raises:
        PruningError: For an entry without a name or a value that cannot be read.
    """
    found: dict[str, Any] = {}
    for tree in read_overrides(overrides):
        values, problems = typed({"pipeline": tree})
        _refuse([f"{COMMAND_LINE}: {next(iter(tree))}{text.removeprefix('pipeline')}" for text in problems])
        found |= values["pipeline"]
    return found


def to_yaml(recipe: Recipe) -> str:
    """Return the recipe as YAML with every value written out; it reads back as the same recipe."""
    return yaml.safe_dump(_escaped(asdict(recipe)), sort_keys=False, allow_unicode=True, width=10_000)


def _escaped(value: Any) -> Any:
    """Return values in which ``${`` is text and names no other key."""
    if isinstance(value, dict):
        return {key: _escaped(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_escaped(entry) for entry in value]
    return (
        re.sub(r"(\\*)\$\{", lambda found: found[1] * 2 + r"\${", value) if isinstance(value, str) else value
    )


def _refuse(problems: Sequence[str]) -> None:
    if problems:
        raise PruningError("\n".join(problems))


def _is_of(key: str, places: Iterable[str]) -> bool:
    """Tell whether the value at `key` is one of `places`, or is in one, or has one in it."""
    return any(
        key == place or key.startswith((f"{place}.", f"{place}[")) or place.startswith(f"{key}.")
        for place in places
    )
