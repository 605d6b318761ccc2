"""From a YAML file and overrides to a `Recipe`; the only user of OmegaConf.

A value is looked at three times: its key must be one of the schema's, its type must fit (both here, by
`structure_problems`), and it must make sense (`checks.value_problems`). Each look reports all it finds at once.
"""

from __future__ import annotations

import dataclasses
import difflib
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pruning.errors import PruningError
from pruning.recipe.checks import value_problems
from pruning.recipe.reading import COMMAND_LINE, read_overrides, read_yaml
from pruning.recipe.schema import Recipe


def recipes_folder() -> Path:
    """Return the folder of the bundled recipes: inside the package (a wheel), else beside it (a checkout)."""
    package = Path(__file__).resolve().parents[1]
    inside = package / "recipes"
    return inside if inside.is_dir() else package.parent / "recipes"


def bundled_recipes() -> dict[str, Path]:
    """Return the bundled recipes by name, sorted."""
    return {path.stem: path for path in sorted(recipes_folder().glob("*.yaml"))}


def find_recipe(argument: str | Path) -> Path:
    """Return the file of a recipe.

    Args:
        argument: A path of a YAML file; a run directory (its own ``recipe.yaml`` is taken); or the name of a
            bundled recipe, written ``quickstart``, ``quickstart.yaml`` or ``recipes/quickstart.yaml``.

    Raises:
        PruningError: If there is no such recipe; the message lists the bundled ones.
    """
    path = Path(argument).expanduser()
    if path.is_dir() and (path / "recipe.yaml").is_file():
        return path / "recipe.yaml"
    if path.is_file():
        return path
    bundled = bundled_recipes()
    name = path.name.removesuffix(".yaml")
    if path.parent in (Path(), Path("recipes")) and name in bundled:
        return bundled[name]
    near = difflib.get_close_matches(name, bundled, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    found = (
        "a folder without a recipe.yaml, so no run directory,"
        if path.is_dir()
        else "neither a file nor a run directory"
    )
    raise PruningError(f"no recipe {str(argument)!r}: {found} nor one of {', '.join(bundled)}{hint}")


def load_recipe(argument: str | Path, overrides: Sequence[str] = (), *, check: bool = True) -> Recipe:
    """Read a recipe, put `overrides` on top, and check all of it.

    A target on the command line takes the place of the recipe's, whichever of the three either is.

    Args:
        argument: What `find_recipe` takes.
        overrides: ``key.path=value`` entries, values in YAML.
        check: Also check that the values make sense (this imports the rooms that know the valid names).

    Raises:
        PruningError: Naming every unknown key with its nearest valid one, every value of a wrong type, or
            every value that makes no sense, each with the place it was written at.
    """
    path = find_recipe(argument)
    written, asked = _sections_filled(read_yaml(path)), read_overrides(overrides)
    if Path(argument).expanduser().is_dir():  # wherever a run directory was moved to, it is that run's
        written["run_dir"] = str(argument)
    _refuse([f"{path}: {p}" for p in structure_problems(written)])
    _refuse([f"{COMMAND_LINE}: {p}" for p in structure_problems(asked)])
    recipe = _merge(path, written, asked)
    if check:
        where = [entry.split("=", 1)[0] for entry in overrides]
        problems = value_problems(recipe)
        _refuse([f"{COMMAND_LINE if _is_of(key, where) else path}: {key}: {text}" for key, text in problems])
    return recipe


def to_dict(recipe: Recipe) -> dict[str, Any]:
    """Return the recipe as plain JSON types."""
    return dataclasses.asdict(recipe)


def to_yaml(recipe: Recipe) -> str:
    """Return the recipe as YAML with every value written out."""
    return OmegaConf.to_yaml(OmegaConf.structured(recipe))


def structure_problems(data: Mapping[Any, Any]) -> list[str]:
    """Return one message for every unknown key and for every value of a wrong type."""
    return list(_walk(Recipe, data, ""))


def _refuse(problems: Sequence[str]) -> None:
    if problems:
        raise PruningError("\n".join(problems))


def _is_of(key: str, places: Iterable[str]) -> bool:
    """Tell whether the value at `key` is one of `places`, or is in one, or has one in it."""
    return any(
        key == place or key.startswith((f"{place}.", f"{place}[")) or place.startswith(f"{key}.")
        for place in places
    )


def _sections_filled(data: dict[Any, Any]) -> dict[Any, Any]:
    """Return `data` with empty sections (``recover:`` and nothing below) as empty mappings."""
    hints = _hints(Recipe)
    return {
        key: {} if value is None and _is_section(hints.get(key)) else value for key, value in data.items()
    }


def _merge(path: Path, written: dict[Any, Any], asked: dict[Any, Any]) -> Recipe:
    """Put the recipe over the defaults and the overrides over both."""
    if asked.get("prune", {}).get("target"):
        written = {**written, "prune": {**written.get("prune", {}), "target": {}}}
    try:
        merged = OmegaConf.merge(OmegaConf.structured(Recipe), written, asked)
        recipe = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        reason = str(error).splitlines()[0]
        raise PruningError(f"{path}: {getattr(error, 'full_key', None) or 'recipe'}: {reason}") from error
    assert isinstance(recipe, Recipe)
    return recipe


def _walk(schema: type, data: Mapping[Any, Any], prefix: str) -> Iterator[str]:
    """Yield the problems of a mapping that should be a `schema`; `prefix` ends in a dot or is empty."""
    hints = _hints(schema)
    for key, value in data.items():
        path = f"{prefix}{key}"
        if key not in hints:
            yield f"{path} is unknown{_nearest(schema, str(key), prefix)}"
        elif _is_section(hints[key]):
            if isinstance(value, Mapping):
                yield from _walk(hints[key], value, f"{path}.")
            else:
                yield f"{path}: {value!r} is not a mapping; its keys are {', '.join(_hints(hints[key]))}"
        elif (item := _section_item(hints[key])) and isinstance(value, list):
            for position, entry in enumerate(value):
                if isinstance(entry, Mapping):
                    yield from _walk(item, entry, f"{path}[{position}].")
                else:
                    yield f"{path}[{position}]: {entry!r} is not a mapping; its keys are {', '.join(_hints(item))}"
        elif not _fits(schema, key, value):
            yield f"{path}: {value!r} is a {type(value).__name__}; expected {_type_name(hints[key])}"


def _fits(schema: type, key: str, value: Any) -> bool:
    """Tell whether OmegaConf takes `value` for this field."""
    if isinstance(value, bool) and typing.get_type_hints(schema)[key] is not bool:
        return False
    try:
        OmegaConf.merge(OmegaConf.structured(schema), {key: value})
    except OmegaConfBaseException:
        return False
    return True


def _nearest(schema: type, key: str, prefix: str) -> str:
    """Return a hint: the nearest key beside it, else the same or a near key in another section."""
    beside = difflib.get_close_matches(key, _hints(schema), n=1)
    if beside:
        return f"; did you mean {prefix}{beside[0]}?"
    elsewhere: dict[str, str] = {}
    for leaf in _leaves(Recipe, ""):
        elsewhere.setdefault(leaf.rsplit(".", 1)[-1], leaf)
    near = difflib.get_close_matches(key, elsewhere, n=1, cutoff=0.75)
    return f"; did you mean {elsewhere[near[0]]}?" if near else f"; valid here: {', '.join(_hints(schema))}"


def _leaves(schema: type, prefix: str) -> Iterator[str]:
    for key, hint in _hints(schema).items():
        yield f"{prefix}{key}"
        if _is_section(hint):
            yield from _leaves(hint, f"{prefix}{key}.")


def _hints(schema: type) -> dict[str, Any]:
    return typing.get_type_hints(schema)


def _is_section(hint: Any) -> bool:
    return dataclasses.is_dataclass(hint)


def _section_item(hint: Any) -> type | None:
    """Return the dataclass a list holds, or None."""
    items = typing.get_args(hint) if typing.get_origin(hint) is list else ()
    return items[0] if items and _is_section(items[0]) else None


def _type_name(hint: Any) -> str:
    """Return a type as a reader of YAML would say it."""
    words = {str: "text", int: "a whole number", float: "a number", bool: "true or false", type(None): "null"}
    if typing.get_origin(hint) is list:
        item = typing.get_args(hint)[0]
        return "a list of mappings" if _is_section(item) else f"a list of {words[item]}"
    options = typing.get_args(hint) or (hint,)
    return " or ".join(words[option] for option in options)
