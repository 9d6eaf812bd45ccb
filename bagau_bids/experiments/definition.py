"""An experiment as its TOML file states it: systems, data, folds, recipe, printed numbers."""

import re
import tomllib
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import msgspec
from msgspec import structs

from bagau_bids.errors import UsageError
from bagau_bids.training.settings import ABLATIONS, ARCHITECTURES, INPUTS, TrainingSettings

THRESHOLD, RATER = "threshold", "rater"  # systems without a network
METRICS = ("dice", "avd", "recall", "f1")  # of the paper's tables, in percent
CHECKPOINTS = ("best", "last")
# Settings that no recipe holds: they are the system's, or follow from the pool.
_ELSEWHERE = ("architecture", "inputs", "ablations", "seed", "synthetic_fraction")


class DataSource(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A data set that is named in the file and given a path on the command line.

    Attributes
    ----------
    name
        As in ``--data name=path``.
    masks
        Folder of its lesion masks, relative to the data set.
    exclude
        Subjects left out.
    groups
        Lists of subjects that are one person, or must stay together for another reason.
    balance
        Column of ``participants.tsv`` whose values are spread over the parts; empty: none.
    where
        Columns of ``participants.tsv`` and the value that they must have; others are not read.
    """

    name: str
    masks: str = "derivatives/manual"
    exclude: tuple[str, ...] = ()
    groups: tuple[tuple[str, ...], ...] = ()
    balance: str = ""
    where: dict[str, str] = {}


class FoldPlan(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How people are divided: 10 parts and validation of one ninth of the rest are 8:1:1.

    Attributes
    ----------
    parts
        People are dealt into so many parts; fold number n is tested on part n.
    folds
        How many of these folds are run.
    validation
        Share of the people not tested on who choose the checkpoint; one at least.
    seed
        Of the order in which people are dealt.
    """

    parts: int = 10
    folds: int = 1
    validation: float = 1 / 9
    seed: int = 0


class System(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A row of the table.

    Attributes
    ----------
    name
        Of its folder.
    label
        Of its row.
    architecture
        ``bagau_net``, ``unet``; ``threshold``: FLAIR intensity inside the atlas' white matter;
        ``rater``: the masks of a second rater, where they are given.
    inputs, ablations
        As for `TrainingSettings`.
    seeds
        One network is trained with each; several are also judged as an ensemble.
    paper
        Printed figures by the names of `METRICS`, percent.
    note
        Shown with the row.
    """

    name: str
    label: str
    architecture: str
    inputs: tuple[str, ...] = TrainingSettings.inputs
    ablations: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0,)
    paper: dict[str, float] = {}
    note: str = ""

    @property
    def trained(self) -> bool:
        """Whether it is a network."""
        return self.architecture in ARCHITECTURES


_Recipe = msgspec.defstruct(
    "_Recipe",
    [(f.name, f.type, f.default) for f in fields(TrainingSettings) if f.name not in _ELSEWHERE],
    forbid_unknown_fields=True,
)
WithRecipe = msgspec.defstruct(
    "WithRecipe", [("recipe", _Recipe, msgspec.field(default_factory=_Recipe))]
)


class Experiment(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The whole file.

    Attributes
    ----------
    title, source, caveats
        Text for the table: what it is, where the printed figures come from, what to bear in
        mind.
    data
        At least one.
    plan
        The folds.
    recipe
        Fields of `TrainingSettings` that differ from the paper's recipe.
    checkpoint
        ``best`` on the validation scans, or ``last``.
    validate_every
        Steps between validations.
    systems
        At least one.
    """

    title: str
    source: str
    data: tuple[DataSource, ...] = ()
    systems: tuple[System, ...] = msgspec.field(default=(), name="system")
    caveats: tuple[str, ...] = ()
    plan: FoldPlan = msgspec.field(default=FoldPlan(), name="split")
    recipe: dict[str, Any] = {}
    checkpoint: str = "best"
    validate_every: int = 500

    def settings(self, system: System, seed: int) -> TrainingSettings:
        """Put the settings of the training of one network together."""
        return replace(
            TrainingSettings(),
            **self.recipe,
            architecture=system.architecture,
            inputs=system.inputs,
            ablations=system.ablations,
            seed=seed,
        )

    @property
    def inputs(self) -> set[str]:
        """Of all systems; where T1w is one, scans without it are in no row of the table."""
        return {name for one in self.systems if one.trained for name in one.inputs}


def read_experiment(path: Path, changes: Sequence[str] = ()) -> Experiment:
    """Read an experiment from its file.

    Parameters
    ----------
    path : Path
        TOML.
    changes : sequence of str
        ``key=value`` with a dotted key and a TOML value, e.g. ``recipe.steps=3``: put into the
        file's content before it is read.

    Raises
    ------
    UsageError
        If the file cannot be read, or a key or value is none that is known; the message names
        it.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(
            f"{path}: cannot be read as TOML ({error}); expected an experiment such as those in "
            "the folder experiments"
        ) from error
    for change in changes:
        _put(content, change)
    try:
        recipe = structs.asdict(structs.asdict(msgspec.convert(content, WithRecipe))["recipe"])
        given = {key: recipe[key] for key in content.get("recipe", {})}
        experiment = msgspec.convert(content | {"recipe": given}, Experiment)
    except msgspec.ValidationError as error:
        raise UsageError(
            f"{path}: {error}; expected an experiment such as those in the folder experiments"
        ) from error
    _check(experiment, str(path))
    return experiment


def _put(content: dict[str, Any], change: str) -> None:
    key, separator, value = change.partition("=")
    try:
        parsed = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        parsed = value
    *parents, last = key.split(".")
    table: Any = content
    for parent in parents:
        table = table.setdefault(parent, {}) if isinstance(table, dict) else None
    if not separator or not isinstance(table, dict):
        raise UsageError(f"--set {change}: expected KEY=VALUE such as recipe.steps=3")
    table[last] = parsed


def _check(experiment: Experiment, where: str) -> None:
    for what in ("data", "systems"):
        names = [one.name for one in getattr(experiment, what)]
        wrong = [n for n in names if not re.fullmatch(r"[a-z0-9-]+", n) or names.count(n) > 1]
        if wrong or not names:
            raise UsageError(
                f"{where}: names of {what}: {', '.join(names) or 'none'}; expected one or more, "
                "all different, of small letters, digits and dashes"
            )
    plan = experiment.plan
    if not (plan.parts >= 2 and 1 <= plan.folds <= plan.parts and 0 < plan.validation < 1):
        raise UsageError(
            f"{where}: split: {plan}; expected at least 2 parts, 1 to that many folds, and a "
            "validation share between 0 and 1"
        )
    if experiment.checkpoint not in CHECKPOINTS:
        raise UsageError(
            f"{where}: checkpoint {experiment.checkpoint!r}; expected {' or '.join(CHECKPOINTS)}"
        )
    for system in experiment.systems:
        _check_system(system, f"{where}: system {system.name}")


def _check_system(system: System, where: str) -> None:
    for what, values, allowed in (
        ("architecture", (system.architecture,), (*ARCHITECTURES, THRESHOLD, RATER)),
        ("inputs", system.inputs, INPUTS),
        ("ablations", system.ablations, ABLATIONS),
        ("paper", system.paper, METRICS),
    ):
        wrong = [str(value) for value in values if value not in allowed]
        if wrong:
            raise UsageError(
                f"{where}: {what} {', '.join(wrong)}; expected some of {', '.join(allowed)}"
            )
    if not system.seeds or len(set(system.seeds)) < len(system.seeds):
        raise UsageError(f"{where}: seeds {list(system.seeds)}; expected one or more, different")
