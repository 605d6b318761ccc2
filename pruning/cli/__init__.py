"""The command ``sinkprune``: arguments in, one short table and the path of what was written out.

Only what parsing needs is imported here, so that ``--help`` answers at once.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import NoReturn

from pruning.errors import is_unicode

STAGE_HELP = {
    "calibrate": "gather statistics of the dense model",
    "score": "score every head and channel by its importance",
    "plan": "decide which of them go, so that the target is met",
    "prune": "refit what stays, cut, and write the slim model",
    "recover": "train the slim model back",
    "evaluate": "measure the dense, the pruned and the recovered model",
    "export": "write the slim diffusers folder",
    "report": "draw the report; several run directories give one comparison",
}

DESCRIPTION = """\
Make diffusion models slimmer: sink-aware structured pruning for diffusers.

  sinkprune run quickstart                           a digits DiT at half the MACs, in minutes
  sinkprune run sd15 --dry-run                       what would be cut; no weights are fetched
  sinkprune plan my/config.json --macs 0.7           the same of any denoiser, without a recipe
  sinkprune cp quickstart my.yaml                    a recipe of your own
  sinkprune run my.yaml prune.target.macs=0.6        any value can be overridden
  sinkprune report runs/*                            compare runs
  sinkprune sweep my.yaml --grid prune.target.macs=0.4,0.6,0.8      several runs, compared
  sinkprune record my.yaml                           what its pipeline asks of its denoiser, on disk
  sinkprune push runs/quickstart --repo ORG/NAME     the slim model with its card to a model hub

`run` does all stages, from calibrate to report; each stage is also a command, which does it and what it needs.
"""

EPILOG = """\
`sinkprune COMMAND --help` explains a command. Exit status: 0; 2 for a mistake in what was asked, or something that
cannot be done; 130 after Ctrl-C.
"""

RUN = """\
Run the stages of a recipe: calibrate, score, plan, prune, recover, evaluate, export, report.

What people open is in runs/<name>, results are kept in runs/.store. A stage of which there is a result with the same
settings and inputs, of this run or of another, is reused; setting a key back finds the old results. A run that was
stopped goes on where it was.

`sinkprune show RECIPE` lists all KEYs with their values.
"""
PLAN = """\
Of a recipe: decide which of the scored units go, so that the target is met. Stages before it that are missing or out of
date run first.

Of a model: say what it is at the input that it was made for (parameters, MACs, size of its file, what may be cut), and
with a target what a plan that takes the same share of every group makes of it. A model is a config.json, a folder,
bundled:models/<name> or a hub id; no weights are read, and of a hub id only the config is fetched.

  sinkprune plan flux/transformer/config.json
  sinkprune plan black-forest-labs/FLUX.1-dev --macs 0.7 --kinds ffn_channels --round-to 64 --save plan.json
"""
PRUNE = """\
Of a recipe: refit what stays, cut, and write the slim model. Stages before it that are missing or out of date run
first.

Of a model, with --plan and --out: write what the plan leaves of it as a folder. Weights go from file to file, a little
at a time, so the model may be larger than the memory; no data are read, and nothing is refitted or trained. What was
stopped goes on where it was. A model is a folder, bundled:models/<name> or a hub id, pruned already or not.

  sinkprune plan black-forest-labs/FLUX.1-dev --macs 0.7 --save plan.json
  sinkprune prune black-forest-labs/FLUX.1-dev --plan plan.json --out slim --dtype bfloat16
"""
RECORD = """\
Keep what a pipeline asks of its denoiser while it samples: calibration and recovery read it from disk, without text
encoder or autoencoder.

Of a recipe: make the recorded calls that its stages read, in its store, before `run` does.

Of a pipeline, with --out: record it into a folder. A pipeline is a folder, bundled:models/<name> or a hub id; KEY=VALUE
are arguments of its own call. How large the recording will be is said before it is made; one that was stopped goes on
where it was. `sinkprune show FOLDER` says what it holds.

  sinkprune record my.yaml
  sinkprune record PixArt-alpha/PixArt-Sigma-XL-2-1024-MS --prompts texts.txt --out calls num_inference_steps=20
"""
SWEEP = """\
Do runs of one recipe that differ in some settings, and compare them on one page. What they have in common, such as the
calibration and the dense model's samples, is done once. A sweep that was stopped goes on where it was.

  sinkprune sweep my.yaml --grid prune.target.macs=0.4,0.5,0.6 score.criterion=probe_obs,magnitude
  sinkprune sweep my.yaml --grid prune.target.macs=0.3..0.8 prune.scope=global,local --search 20

A grid takes every combination. A search (Optuna) chooses so many of them, among ranges and values, where cost and
quality have improved together before. With --jobs or --ray runs are done at the same time, all but their latencies,
which are measured one run after the other at the end, on this machine.
"""
PUSH = """\
Put the slim model of a finished run on a model hub, with a card that says what was pruned, how, what it costs and what
it gains. What is sent lies in RUN/push; paths of this machine are no part of it. Who you are says the token that
`hf auth login` keeps, or HF_TOKEN. A repository that is there must be empty or hold an earlier push.

  sinkprune push runs/quickstart --repo my-group/slim-digits --dry-run
"""
SHOW = """\
Show a run (stages, figures, what was cut), a checkpoint (what it is and what was cut), recorded calls, or all values of
a recipe.
"""
DIFF = "Show the values in which two recipes differ, and for two runs also the figures."
LS = """\
List the bundled recipes, the candidates that a run may choose among, the criteria, the kinds of groups, the metrics,
the runs under ./runs, the results that are kept for them, or all settings of a recipe; without WHAT: recipes, criteria
and runs.
"""
CLEAN = """\
Remove results that no run directory uses, and what interrupted or damaged work left in the store. What a run uses
stays. A run that was moved away keeps its own files.
"""

DTYPES = ("float32", "float16", "bfloat16")
USER_ERROR, INTERRUPTED = 2, 130
SPINS = "10000"
"""How often a waiting OpenMP thread looks again before it sleeps."""

_FORMATTER = partial(argparse.RawDescriptionHelpFormatter, max_help_position=30)


def command() -> NoReturn:
    """Run the command and end the process.

    At once where it only looked at a model: taking the libraries down takes a second and 100 MB.
    """
    status = main()
    if getattr(sys.modules.get("pruning.cli.lean"), "looked", None):
        os._exit(status)
    sys.exit(status)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: Arguments without the command's name; None takes those of the process.

    Returns:
        The exit status: 0, 2 for a user's mistake or an impossible request, 130 after Ctrl-C.
    """
    if argv is None:  # whatever the locale says, they are UTF-8
        argv = [os.fsencode(word).decode("utf-8", "surrogateescape") for word in sys.argv[1:]]
    words = list(argv)
    if not words:
        build_parser().print_help(sys.stderr)
        return USER_ERROR
    arguments = _parse(build_parser(), words)
    _set_environment()
    from pruning.cli.console import Console

    before = signal.signal(signal.SIGTERM, _terminate)
    with Console(arguments.json, arguments.quiet) as console:
        try:
            from pruning.cli.commands import COMMANDS

            console.finish(arguments.command, COMMANDS[arguments.command](arguments, console))
            sys.stdout.flush()
        except BrokenPipeError:  # `sinkprune ls | head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        except KeyboardInterrupt:
            console.interrupted()
            return INTERRUPTED
        except Exception as error:
            if arguments.debug or not _is_expected(error):
                raise
            console.error(error)
            return USER_ERROR
        finally:
            signal.signal(signal.SIGTERM, before)
    return 0


def _set_environment() -> None:
    """Set what libraries read once, when they are imported, unless the user has set it."""
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")  # what matters to the user, we say ourselves
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    if "OMP_WAIT_POLICY" not in os.environ:
        # Threads that wait for each other spin and so take the cores of others, or of the very thread that they wait
        # for: docs/benchmarks.md has the figures.
        os.environ.setdefault("GOMP_SPINCOUNT", SPINS)


def _is_expected(error: Exception) -> bool:
    """Tell whether one message says it all: a user's mistake, the file system, or too little memory."""
    torch = sys.modules.get("torch")
    out_of_memory = (torch.OutOfMemoryError,) if torch else ()
    return isinstance(error, (ValueError, OSError, *out_of_memory))


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command."""
    parser = argparse.ArgumentParser(
        prog="sinkprune", description=DESCRIPTION, epilog=EPILOG, formatter_class=_FORMATTER
    )
    parser.add_argument("-V", "--version", action="version", version=f"sinkprune {_version()}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def add(name: str, text: str, more: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=more, formatter_class=_FORMATTER)
        command.add_argument("--json", action="store_true", help="print one line of JSON instead of tables")
        command.add_argument("--quiet", action="store_true", help="no progress, only warnings and errors")
        command.add_argument("--debug", action="store_true", help="show the traceback of an error")
        return command

    run = add("run", "all stages of a recipe", RUN)
    _add_recipe(run)
    stages = tuple(STAGE_HELP)
    run.add_argument(
        "--from", dest="start", metavar="STAGE", choices=stages, help="redo this stage and those after"
    )
    run.add_argument("--until", metavar="STAGE", choices=stages, help="stop after this stage")
    run.add_argument("--dry-run", action="store_true", help="show what would be cut; write nothing")
    run.add_argument("--fresh", action="store_true", help="redo all stages; reuse nothing")
    for name, text in STAGE_HELP.items():
        earlier = (
            "" if name == stages[0] else "\n\nStages before it that are missing or out of date run first."
        )
        more = {"plan": PLAN, "prune": PRUNE}.get(name, f"{text.capitalize()}.{earlier}")
        stage = add(name, text, more)
        if name == "report":
            _add_recipe(stage, "KEY=VALUE|RUN", "; or more run directories, to compare all that are named")
        else:
            _add_recipe(stage)
        stage.add_argument(
            "--redo",
            dest="start",
            action="store_const",
            const=name,
            help="do the stage even if nothing has changed",
        )
        stage.add_argument(
            "--fresh", action="store_true", help="redo all stages up to it; see `sinkprune run`"
        )
        stage.set_defaults(until=name, dry_run=False)
        if name == "plan":
            _add_target(stage)
        if name == "prune":
            _add_cut(stage)
        if name == "report":
            stage.add_argument(
                "--output",
                metavar="FILE.html",
                help="where to write a comparison (report.html beside the runs)",
            )
    _add_record(add("record", "keep what a pipeline asks of its denoiser", RECORD))
    _add_sweep(add("sweep", "runs that differ in some settings, compared", SWEEP))
    push = add("push", "the slim model of a run to a model hub", PUSH)
    push.add_argument("run", metavar="RUN", help="a run directory, exported")
    push.add_argument("--repo", required=True, metavar="OWNER/NAME", help="where to; made if it is not there")
    push.add_argument("--private", action="store_true", help="nobody else may see it")
    push.add_argument(
        "--license", metavar="NAME", help="as the hub calls it, e.g. apache-2.0 (that of the base model)"
    )
    push.add_argument("--dry-run", action="store_true", help="lay out what would be sent; ask no network")
    show = add("show", "what a run, a checkpoint or a recording is", SHOW)
    show.add_argument(
        "target", metavar="TARGET", help="a run directory, a checkpoint, a recording, or a recipe"
    )
    diff = add("diff", "two recipes or two runs", DIFF)
    diff.add_argument("left", metavar="LEFT", help="a recipe or a run directory")
    diff.add_argument("right", metavar="RIGHT", help="another")
    listing = add("ls", "recipes, criteria, runs, settings and more", LS)
    what = ("recipes", "candidates", "criteria", "kinds", "metrics", "results", "runs", "settings")
    listing.add_argument("what", nargs="?", metavar="WHAT", choices=what, help=f"one of {', '.join(what)}")
    listing.add_argument(
        "folder", nargs="?", metavar="FOLDER", help="for runs and results: where they lie (runs)"
    )
    clean = add("clean", "remove results that no run uses", CLEAN)
    clean.add_argument(
        "folder",
        nargs="?",
        metavar="FOLDER",
        help="the folder of the runs, or a store (runs)",
    )
    clean.add_argument("--dry-run", action="store_true", help="only list what would be removed")
    copy = add("cp", "copy a bundled recipe", "Copy a bundled recipe to a file of your own, to be changed.")
    copy.add_argument("recipe", metavar="RECIPE", help="the name of a bundled recipe")
    copy.add_argument("file", metavar="FILE", help="where to; an existing file is not overwritten")
    return parser


def _add_record(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "recipe", metavar="RECIPE|PIPELINE", help="what `run` takes, or with --out a pipeline"
    )
    parser.add_argument(
        "overrides",
        nargs="*",
        default=[],
        metavar="KEY=VALUE",
        help="a value in place of the recipe's, or an argument of the pipeline's call",
    )
    recipe = parser.add_argument_group("for a recipe")
    recipe.add_argument(
        "--held-out", action="store_true", help="what evaluation reads, and not calibration and recovery"
    )
    pipeline = parser.add_argument_group("for a pipeline")
    pipeline.add_argument("--out", metavar="FOLDER", help="where to")
    pipeline.add_argument("--prompts", metavar="FILE", help="a text file, a prompt a line")
    pipeline.add_argument("--labels", metavar="0,1,2", help="classes")
    pipeline.add_argument(
        "--samples", type=int, metavar="N", help="how many; of prompts or classes, those in turn (each once)"
    )
    pipeline.add_argument(
        "--points", type=int, metavar="K", help="sampling steps that are kept of each sample (8)"
    )
    pipeline.add_argument("--seed", type=int, metavar="S", help="of all draws (0)")
    pipeline.add_argument("--dtype", choices=DTYPES, help="type of the weights (float32)")
    pipeline.add_argument("--device", metavar="NAME", help="auto, cpu, cuda, … (auto)")


def _add_sweep(parser: argparse.ArgumentParser) -> None:
    _add_recipe(parser, more="; in all runs")
    parser.add_argument(
        "--grid",
        nargs="+",
        action="extend",
        required=True,
        metavar="KEY=A,B,…",
        help="a setting and its values; for a search also KEY=LOW..HIGH",
    )
    parser.add_argument("--search", type=int, metavar="N", help="choose N runs instead of all")
    parser.add_argument(
        "--front", metavar="A,B", help="figures of summary.json that a search goes by (MACs left and quality)"
    )
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="runs at a time (1)")
    parser.add_argument(
        "--ray",
        nargs="?",
        const="auto",
        metavar="ADDRESS",
        help="use a Ray cluster: its address, `auto` for that of this machine, `local` for one of its own",
    )
    parser.add_argument("--out", metavar="FOLDER", help="where the runs lie (runs/<name>-sweep)")
    parser.add_argument("--dry-run", action="store_true", help="list the runs; do none")


def _add_target(parser: argparse.ArgumentParser) -> None:
    model = parser.add_argument_group("for a model")
    for name, text in {
        "macs": "share of the MACs that remains",
        "params": "share of the parameters that remains",
        "ratio": "share of the prunable parameters that goes",
    }.items():
        model.add_argument(f"--{name}", type=float, metavar="SHARE", help=text)
    model.add_argument(
        "--kinds", metavar="A,B", help="kinds of groups to cut; `sinkprune ls kinds` lists them"
    )
    model.add_argument("--round-to", type=int, metavar="N", help="kept channels are a multiple of this")
    model.add_argument(
        "--modulation-rank",
        type=int,
        metavar="N",
        help="rank of every modulation layer, where it saves parameters",
    )
    model.add_argument(
        "--share-embedders", action="store_true", default=None, help="let embedders that blocks repeat be one"
    )
    model.add_argument("--save", metavar="FILE", help="write the plan as JSON")


def _add_cut(parser: argparse.ArgumentParser) -> None:
    model = parser.add_argument_group("for a model")
    model.add_argument("--plan", metavar="FILE", help="what to keep; `sinkprune plan` with --save writes it")
    model.add_argument("--out", metavar="FOLDER", help="where to; it must not be there yet")
    model.add_argument("--dtype", choices=DTYPES, help="type of the weights (as they are stored)")
    model.add_argument("--max-shard-size", metavar="SIZE", help="largest file of weights (10GB)")


def _add_recipe(parser: argparse.ArgumentParser, others: str = "KEY=VALUE", more: str = "") -> None:
    what = "a recipe file, the name of a bundled recipe, or a run directory"
    parser.add_argument("recipe", metavar="RECIPE", help=what)
    parser.add_argument(
        "overrides",
        nargs="*",
        default=[],  # else argparse calls it required
        metavar=others,
        help=f"a value in place of the recipe's, e.g. prune.target.macs=0.6{more}",
    )


def _parse(parser: argparse.ArgumentParser, argv: list[str]) -> argparse.Namespace:
    """Parse, taking overrides wherever they stand."""
    if broken := [word for word in argv if not is_unicode(word)]:
        parser.error(f"the argument {broken[0]!r} is not UTF-8; type it anew, or rename the file")
    arguments, rest = parser.parse_known_args(argv)
    overrides = [word for word in rest if "=" in word and not word.startswith("-")]
    unknown = [word for word in rest if word not in overrides]
    if unknown or (rest and not hasattr(arguments, "overrides")):
        parser.error(f"unrecognized arguments: {' '.join(unknown or rest)}")
    if rest:
        arguments.overrides = [*arguments.overrides, *overrides]
    return arguments


def _terminate(number: int, frame: object) -> NoReturn:
    """Treat a polite kill (a scheduler's preemption) as Ctrl-C: locks are released, state stays resumable."""
    raise KeyboardInterrupt


def _version() -> str:
    try:
        return version("sinkprune")
    except PackageNotFoundError:
        return "(not installed)"
