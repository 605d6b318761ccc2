"""What each subject of an evaluation shows, kept in the store: the dense model is looked at once for all runs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from eval.observation import Observation
from eval.run import help_to_look, look, observations
from eval.types import DATA, Context
from pruning.files import expanded
from pruning.models import resolve_source
from pruning.stages.run import Run
from pruning.stages.showing import RECORDED, shows_recorded_example
from pruning.stages.stage import pick
from pruning.store import SCRATCH, Key

SAMPLED = (
    "data",
    "model.dtype",
    "seed",
    "pipeline",
    "evaluate.num_samples",
    "evaluate.num_steps",
    "evaluate.sampler",
    "evaluate.guidance_scale",
)
READS = {
    "samples": SAMPLED,
    "image_features": (*SAMPLED, "evaluate.num_real", "evaluate.features"),
    "fd_dinov2": (*SAMPLED, "evaluate.num_real", "evaluate.networks.dinov2"),
    "cmmd": (*SAMPLED, "evaluate.num_real", "evaluate.networks.cmmd"),
    "clip_score": (*SAMPLED, "evaluate.networks.clip"),
    "denoising": (*RECORDED, "data", "calibrate.provider", "evaluate.denoising_samples"),
    "cost": ("model.dtype", "export.dtype"),
}
"""Keys that an observation depends on; one that is not named here depends on all that are `LOOKED_AT`."""

NETWORKS = "evaluate.networks."
WITH_A_FILE = r"^(inception|alex|vgg|squeeze):"
"""How a network begins of which a file of weights is named."""

LOOKED_AT = (*RECORDED, "data", "calibrate.provider", "export.dtype", "evaluate")

Shown = dict[str, Observation]
Seen = dict[str, Shown]


def observe(run: Run, context: Context, subjects: dict[str, str]) -> Seen:
    """Return what the metrics of the recipe read of every subject and of the data, looked at or found in the store.

    The processes of a launch make samples and features together, batch by batch; all else is of the first.

    Args:
        run: The run.
        context: The subjects and the data.
        subjects: What tells each subject from others: a hash of its weights.
    """
    seen: Seen = {}
    for name in (DATA, *context.subjects):
        seen[name] = {}
        for what in observations(run.recipe.evaluate.metrics, name):
            if run.ranks.is_first:
                key = observation_key(run, what, subjects.get(name, DATA))
                folder = _looked_at(run, context, name, what, seen[name], key)
            else:
                folder = _helped(run, context, name, what, seen[name])
            seen[name][what] = Observation.load(folder, what)
    return seen


def _looked_at(run: Run, context: Context, name: str, what: str, seen: Shown, key: Key) -> Path:
    """Return the folder of an observation, made with the other processes or found."""
    work, whole = _topics(name, what)
    told = False

    def make(folder: Path) -> None:
        batches = folder / SCRATCH / what

        def share(missing: list[int]) -> Sequence[int]:
            nonlocal told
            told = True
            run.ranks.say(work, {"folder": str(batches.absolute()), "missing": missing})
            return run.ranks.share(missing)

        look(context, name, what, seen, folder, batches=batches, share=share)

    found = run.part(key, make, resumable=True)
    if not told:
        run.ranks.say(work, {"folder": None})
    run.ranks.say(whole, {"folder": str(found.folder.absolute())})
    return found.folder


def _helped(run: Run, context: Context, name: str, what: str, seen: Shown) -> Path:
    """Make this process's batches of an observation, if there are any, and return its folder when it is whole."""
    work, whole = _topics(name, what)
    word = run.ranks.hear(work)
    if word["folder"] is not None:
        numbers = run.ranks.share(word["missing"])
        help_to_look(context, name, what, seen, batches=Path(word["folder"]), numbers=numbers)
    return Path(run.ranks.hear(whole)["folder"])


def _topics(name: str, what: str) -> tuple[str, str]:
    """Return under which topics the first process tells the others of the work, and where the result is."""
    return f"evaluate.{name}.{what}", f"evaluate.{name}.{what}.whole"


def observation_key(run: Run, what: str, subject: str) -> Key:
    """Return what an observation of a subject depends on."""
    config = pick(run.recipe, READS.get(what, LOOKED_AT))
    if "evaluate.features" in config:
        config["evaluate.features"] = features_identity(run)
    config |= {key: network_identity(run, config[key]) for key in config if key.startswith(NETWORKS)}
    if what == "cost":  # its peak memory is that of a device
        config["device"] = run.device.type
        if shows_recorded_example(run):
            config |= pick(run.recipe, ("data", *RECORDED))
    return Key(what, config, {**run.workspace.hashes, "subject": subject})


def features_identity(run: Run) -> list[str]:
    """Return the name of the feature network, and the hashes of its files where they are here."""
    return network_identity(run, run.recipe.features)


def network_identity(run: Run, spec: str) -> list[str]:
    """Return a network as the recipe names it, and the hashes of its files where they are here."""
    place = expanded(resolve_source(re.sub(WITH_A_FILE, "", spec)))
    files = sorted(place.iterdir()) if place.is_dir() else [place]
    return [spec, *(run.workspace.file_hashes.of(path) for path in files if path.is_file())]
