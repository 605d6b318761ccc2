"""The models that are studied, and the cells that are measured on each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace

from pruning.recipe import Recipe
from pruning.settings import Data, Evaluate, Model, Prune, Target

LOOKING = range(3)
"""Calibration sets for looking around and for choosing what is compared. Set 3 was looked at while this was written."""
DECIDING = range(4, 12)
"""Calibration sets that decide."""

RATIO = 0.7  # of the MACs stay: the ratio of the primary contrast
OTHER_RATIOS = (0.85, 0.5)

BLIND = (
    "random",
    "magnitude",
    "wanda",
    "taylor",
    "diff_pruning",
    "energy",
    "flap",
    "fluctuation",
    "probe",
    "obs",
)
RIVALS = ("random", "magnitude", "wanda", "taylor", "diff_pruning", "flap", "fluctuation", "obs")
"""What the default has to beat."""
DEFAULT = ("probe_obs", "off")
TRIED = (("obs", "on"), ("probe_obs", "off"), ("probe_obs", "on"))
"""What is tried against them."""
RECOVERED = (DEFAULT, ("obs", "off"), ("diff_pruning", "off"), ("magnitude", "off"))
"""Arms that are trained back."""
LEFT_AFTER = (RATIO, 0.5)
"""MACs that stay before they are: in equal shares, and in the harder setting each in its better allocation."""
COMPENSATIONS = ("least_squares", "fold")


@dataclass(frozen=True)
class Subject:
    """A trained model and the images it was trained on.

    Attributes:
        name: Name in the results.
        source: Folder of the model, or a bundled one.
        data: Images as `pruning.data.open_images` takes them.
        features: Classifier for the Fréchet distance.
        calibration: Images in a calibration set.
        factorial: Whether sink weights of all four signs are tried on it; on a twin without sinks as a control.
        recovery: On how many of the deciding sets pruned models of it are trained back and sampled.
    """

    name: str
    source: str
    data: str = "digits"
    features: str = "bundled:models/digits-classifier"
    calibration: int = 96
    factorial: bool = False
    recovery: int = 0

    @property
    def recipe(self) -> Recipe:
        """What is studied, as a recipe."""
        return Recipe(
            name=f"study-{self.name}",
            run_dir=f"runs/study/{self.name}",
            device="cpu",
            model=Model(source=self.source),
            data=Data(source=self.data),
            prune=Prune(target=Target(macs=RATIO)),
            evaluate=Evaluate(features=self.features),
        )


FASHION = "../shared/data/fashion_mnist"  # no part of the repository
CIFAR_FEATURES = "runs/base/cifar-classifier"
FASHION_FEATURES = "runs/base/fashion-classifier"  # both by scripts/train_digits_classifier.py

SUBJECTS = {
    subject.name: subject
    for subject in (
        Subject("digits-dit", "bundled:models/digits-dit", recovery=3),
        Subject("digits-unet", "bundled:models/digits-unet", recovery=3),
        Subject("fashion-dit", "runs/base/fashion-dit", FASHION, FASHION_FEATURES, recovery=3),
        Subject(
            "fashion-text-unet",
            "runs/base/fashion-text-unet",
            "runs/base/data/fashion-captions",
            FASHION_FEATURES,
            factorial=True,
        ),
        *(
            Subject(
                f"fashion-dit-16-{twin.replace('_', '-')}",
                f"runs/base/fashion-dit-16-twins/{twin}",
                FASHION,
                FASHION_FEATURES,
                factorial=True,
                recovery=5 if twin == "massive" else 0,
            )
            for twin in ("massive", "sinks", "plain", "off_by_one")
        ),
        Subject("cifar-dit", "runs/base/cifar-dit", "../shared/data/cifar10_jpeg", CIFAR_FEATURES),
        Subject("fashion-unet", "runs/base/fashion-unet", FASHION, FASHION_FEATURES),
        Subject("digits-dit-sinks", "runs/base/digits-dit-twins/sinks"),
    )
}


@dataclass(frozen=True)
class Cell:
    """One pruned model.

    Attributes:
        model: Name of the subject.
        criterion: What ranks the units.
        omega: Row weights: ``off``, ``on``, ``permuted``, ``influence``, ``influence_permuted``.
        unstable: lambda_u of the row weights.
        stable: lambda_s.
        draw: Number of the permutation, 0 where nothing is permuted.
        compensation: ``none``, ``fold`` or ``least_squares``.
        scope: ``local`` takes equal shares from every group, ``global`` ranks all units together.
        selection: ``one_shot`` or ``block_by_block``.
        macs_ratio: MACs that are asked to stay.
        seed: Number of the calibration set.
        recovered: Whether the pruned model was trained back.
    """

    model: str
    criterion: str
    omega: str = "off"
    unstable: float = 1.0
    stable: float = 0.0
    draw: int = 0
    compensation: str = "least_squares"
    scope: str = "local"
    selection: str = "one_shot"
    macs_ratio: float = RATIO
    seed: int = 0
    recovered: bool = False

    @property
    def key(self) -> str:
        """Name of the cell, unique."""
        return "/".join(str(value) for value in asdict(self).values())

    @property
    def arm(self) -> str:
        """Name of the cell but for the calibration set and the permutation's draw."""
        return replace(self, seed=0, draw=0).key

    @property
    def label(self) -> str:
        """What the row weights are, in short."""
        if self.omega in ("on", "permuted"):
            return f"{self.omega} ({self.unstable:g}, {self.stable:g})"
        return self.omega


SIGNS = ((1.0, 0.0), (1.0, 1.0), (0.0, 1.0), (-1.0, -1.0))


def cells(subject: Subject, sinks: bool) -> Iterator[Cell]:
    """Yield the cells of a subject, the most telling ones first.

    Args:
        subject: What is studied.
        sinks: Whether it can tell anything about sinks (step 0), or is a control; else its omega arms are left out.
    """
    everywhere = [*((name, "off") for name in BLIND), *(arm for arm in TRIED if sinks or arm[1] == "off")]
    for compensation in COMPENSATIONS:
        for seed in (*LOOKING, *DECIDING):
            for criterion, omega in everywhere:
                yield Cell(subject.name, criterion, omega, compensation=compensation, seed=seed)
        if sinks and compensation == COMPENSATIONS[0]:
            yield from _factorial(subject)
        for seed in LOOKING if compensation == COMPENSATIONS[0] else ():
            yield from _looked_at(subject, seed)


def _looked_at(subject: Subject, seed: int) -> Iterator[Cell]:
    """Yield other settings, measured on the sets for looking around alone."""
    for criterion in (*BLIND, "probe_obs"):
        yield Cell(subject.name, criterion, scope="global", seed=seed)
    for ratio in OTHER_RATIOS:
        for criterion in ("probe_obs", "obs", "diff_pruning", "fluctuation"):
            yield Cell(subject.name, criterion, macs_ratio=ratio, seed=seed)
    for criterion in ("probe_obs", "obs"):
        yield Cell(subject.name, criterion, selection="block_by_block", seed=seed)


def _factorial(subject: Subject) -> Iterator[Cell]:
    """Yield the row weights of all signs, permuted ones, and those of S2, in the order of their calibrations."""
    for seed in DECIDING:
        for omega in ("influence", "influence_permuted"):
            yield Cell(subject.name, "obs", omega, draw=seed % 5, seed=seed)
        for u, s in SIGNS:
            yield Cell(subject.name, "probe_obs", "permuted", unstable=u, stable=s, draw=seed % 5, seed=seed)
            if (u, s) != (1.0, 0.0):  # that one is tried on every subject
                yield Cell(subject.name, "probe_obs", "on", unstable=u, stable=s, seed=seed)


def recovery_cells(subject: Subject) -> Iterator[Cell]:
    """Yield the cells that are trained back, for the subjects on which that is done."""
    for ratio in LEFT_AFTER:
        for seed in DECIDING[: subject.recovery]:
            for criterion, omega in RECOVERED:
                scope = recovered_scope(criterion, ratio)
                yield Cell(
                    subject.name, criterion, omega, scope=scope, macs_ratio=ratio, seed=seed, recovered=True
                )


def recovered_scope(criterion: str, ratio: float) -> str:
    """Return how units are allocated before a model is trained back.

    In the harder setting each in the allocation that was better for it on the DiTs' sets 0 to 2: magnitude cannot
    hold one layer against another (errors 5 to 9 times as large), the others gain by it.
    """
    return "local" if ratio == RATIO or criterion == "magnitude" else "global"
