"""What each command does; heavy imports come when a command needs them."""

from __future__ import annotations

import argparse
import logging
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pruning.cli import STAGE_HELP, tables
from pruning.cli.comparing import with_report, write_comparison
from pruning.cli.console import Console, Outcome, facts
from pruning.cli.lean import lean
from pruning.cli.look import diff, list_all, show
from pruning.cli.model import PLAN_OPTIONS, PRUNE_OPTIONS, names_model, plan_model, prune_model
from pruning.cli.pushing import push
from pruning.cli.recording import record
from pruning.cli.sweeping import sweep
from pruning.errors import PruningError
from pruning.recipe import Recipe, bundled_recipes, find_recipe, load_recipe
from pruning.stages.folder import RunFolder
from pruning.stages.summary import measured, summary_of
from pruning.store import STORE, Store, folder_bytes

logger = logging.getLogger(__name__)

Command = Callable[[argparse.Namespace, Console], Outcome]


def run(arguments: argparse.Namespace, console: Console) -> Outcome:
    """Run the stages of a recipe up to the one that is asked for, or show what that would do."""
    recipe = load_recipe(arguments.recipe, arguments.overrides)
    if arguments.dry_run:
        found = _dry_run(recipe, console.progress)
        return Outcome(found, tables.dry_run(found))
    from pruning.stages import Run, run_stages

    work = Run(recipe, progress=console.progress)
    run_stages(
        work,
        start=arguments.start,
        until=arguments.until,
        fresh=arguments.fresh,
        say_earlier=arguments.command != "run",
    )
    return _ended(work.folder, arguments.until or "report") if work.ranks.is_first else Outcome({})


def _dry_run(recipe: Recipe, progress: bool) -> dict[str, Any]:
    from pruning.models.hub import pipeline_index

    def look() -> dict[str, Any]:
        from pruning.stages import Run, dry_run

        return dry_run(Run(recipe, progress=progress))

    # The arguments of a pipeline are checked by its class, which diffusers has only with all that it can import.
    whole = pipeline_index(recipe.model.source, recipe.model.revision) is not None
    return look() if whole else lean(look)


def plan(arguments: argparse.Namespace, console: Console) -> Outcome:
    """Do the stage of a recipe, or say what a model is and what a target would make of it."""
    if names_model(arguments.recipe):
        return plan_model(arguments)
    _refuse(arguments, PLAN_OPTIONS, "a recipe says that under prune.*, e.g. prune.target.macs=0.7")
    return run(arguments, console)


def prune(arguments: argparse.Namespace, console: Console) -> Outcome:
    """Do the stage of a recipe, or cut a model from folder to folder."""
    if names_model(arguments.recipe):
        return prune_model(arguments, console)
    _refuse(arguments, PRUNE_OPTIONS, "a recipe's own plan is cut, and written into its run directory")
    return run(arguments, console)


def _refuse(arguments: argparse.Namespace, options: Sequence[str], instead: str) -> None:
    """Options that are for a model are a PruningError beside a recipe."""
    if given := [name for name in options if getattr(arguments, name) is not None]:
        option = given[0].replace("_", "-")
        raise PruningError(
            f"--{option} is for a model, and {arguments.recipe!r} is a recipe, or nothing that is here; {instead}"
        )


def report(arguments: argparse.Namespace, console: Console) -> Outcome:
    """Draw the report of a recipe's run, or one that compares several run directories."""
    words = [arguments.recipe, *arguments.overrides]
    named = [word for word in words if "=" not in word or Path(word).exists()]
    others = [word for word in words if word not in named]
    if len(named) == 1 and arguments.output is None:
        arguments.recipe, arguments.overrides = named[0], others
        return run(arguments, console)
    if others:
        raise PruningError(f"{others[0]}: a comparison of runs takes no overrides")
    runs = with_report([Path(word) for word in named])
    output = write_comparison(runs, Path(arguments.output) if arguments.output else None)
    return Outcome({"runs": [str(path) for path in runs]}, [tables.comparison(runs)], str(output))


def copy(arguments: argparse.Namespace, console: Console) -> Outcome:
    """Copy a bundled recipe to a file that does not exist yet, under the name of that file."""
    name = Path(arguments.recipe).name.removesuffix(".yaml")
    source = bundled_recipes().get(name) or find_recipe(arguments.recipe)
    target = Path(arguments.file)
    if target.is_dir():
        target /= source.name
    if not target.parent.is_dir():
        raise PruningError(
            f"cannot write {target}: there is no folder {target.parent}; make it first, or choose another"
        )
    try:
        with target.open("x", encoding="utf-8") as file:
            file.write(_renamed(source.read_text(encoding="utf-8"), target.stem))
    except FileExistsError as error:
        raise PruningError(f"{target} exists already; choose another name, or delete it first") from error
    return Outcome({"recipe": str(source)}, path=str(target))


def clean(arguments: argparse.Namespace, console: Console) -> Outcome:
    """Remove results that no run uses."""
    nothing = tables.table(("nothing to remove",), [])
    if arguments.folder is None and not Path("runs", STORE).is_dir():
        return Outcome({"removed": [], "bytes": 0, "kept": 0}, [nothing])
    store = Store.of(Path(arguments.folder or "runs"))
    with store.cleaning():
        used = {name for run in store.users() for names in RunFolder(run).uses().values() for name in names}
        unused = [result for result in store.results() if result.name not in used]
        rows = [(result.name, result.bytes) for result in unused]
        rows += [(str(path.relative_to(store.path)), folder_bytes(path)) for path in store.leftovers()]
        if not arguments.dry_run:
            for name, _ in rows:
                shutil.rmtree(store.path / name)
    freed = sum(size for _, size in rows)
    title = f"\n{'would be removed' if arguments.dry_run else 'removed'}: {tables.size(freed)}"
    drawn = tables.table(("result", "size"), [(name, tables.size(size)) for name, size in rows], title=title)
    kept = len(store.results()) - (len(unused) if arguments.dry_run else 0)
    return Outcome(
        {"removed": [name for name, _ in rows], "bytes": freed, "kept": kept},
        [drawn if rows else nothing],
        str(store.path),
    )


def _ended(folder: RunFolder, last: str) -> Outcome:
    """Return the end of a run: the figures, if there are any, and where the last stage wrote."""
    result = dict(folder.manifest(last).get("result", {}))
    path = folder.stage(last)
    drawn = [tables.stages(folder)]
    if last in ("evaluate", "export", "report"):
        drawn.append(tables.subjects(measured(folder)))
    else:
        drawn.append(facts(result, title=f"\n{last}"))
    if last == "report":
        _warn_of(folder.path)
        path /= "report.html"
        slim = sorted(map(str, folder.stage("export").glob("*/")))
        drawn.append(facts({"slim model": slim}, title=""))
    return Outcome(
        {"run": str(folder.path), "stage": last, "result": result, **summary_of(folder.path)},
        drawn,
        str(path),
    )


def _warn_of(run: Path) -> None:
    """Warn of what the report warns of, in one sentence each."""
    from eval.report import load_run
    from eval.report.warnings import warnings

    for text in warnings(load_run(run)):
        logger.warning("%s.", text.partition(". ")[0].removesuffix("."))


def _renamed(text: str, stem: str) -> str:
    """Return the text of a recipe with the name of its file, and nothing else of whose it was; comments stay."""
    name = re.sub(r"[^\w.+-]|^[.+-]", "_", stem)
    text = text if re.search(r"^name:", text, re.MULTILINE) else f"name:\n{text}"
    for key, value in {"name": name, "title": '""', "run_dir": "runs/${name}"}.items():
        text = re.sub(rf"^{key}:.*?(?=\s+#|$)", f"{key}: {value}", text, flags=re.MULTILINE)
    return text


COMMANDS: dict[str, Command] = {
    **dict.fromkeys(("run", *STAGE_HELP), run),
    "plan": plan,
    "prune": prune,
    "report": report,
    "record": record,
    "sweep": sweep,
    "push": push,
    "show": show,
    "diff": diff,
    "ls": list_all,
    "clean": clean,
    "cp": copy,
}
