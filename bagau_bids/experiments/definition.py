"""An experiment as its TOML file states it: systems, data, folds, recipe, printed numbers."""

import difflib
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, get_origin

from bagau_bids.errors import UsageError
from bagau_bids.training.settings import ABLATIONS, ARCHITECTURES, INPUTS, TrainingSettings

THRESHOLD, RATER = "threshold", "rater"  # systems without a network
METRICS = ("dice", "avd", "recall", "f1")  # of the paper's tables, in percent
CHECKPOINTS = ("best", "last")
_OF_THE_SYSTEM = ("architecture", "inputs", "ablations", "seed")  # settings no recipe may hold


@dataclass(frozen=True)
class DataSource:
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
    exclude: tuple = ()
    groups: tuple = ()
    balance: str = ""
    where: dict = field(default_factory=dict)


@dataclass(frozen=True)
class FoldPlan:
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


@dataclass(frozen=True)
class System:
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
    inputs: tuple = TrainingSettings.inputs
    ablations: tuple = ()
    seeds: tuple = (0,)
    paper: dict = field(default_factory=dict)
    note: str = ""

    @property
    def trained(self) -> bool:
        """Whether it is a network."""
        return self.architecture in ARCHITECTURES


@dataclass(frozen=True)
class Experiment:
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
    changes
        What the command line changed, ``key=value``.
    """

    title: str
    source: str
    data: tuple[DataSource, ...]
    systems: tuple[System, ...]
    caveats: tuple = ()
    plan: FoldPlan = FoldPlan()
    recipe: dict = field(default_factory=dict)
    checkpoint: str = "best"
    validate_every: int = 500
    changes: tuple = ()

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
    def with_t1(self) -> bool:
        """Whether any system needs T1w; then scans without one are in no row of the table."""
        return any("t1" in system.inputs for system in self.systems if system.trained)


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
    where = str(path)
    content["data"] = tuple(
        _made(DataSource, d, f"{where}: data") for d in content.get("data", ())
    )
    content["systems"] = tuple(
        _made(System, d, f"{where}: system") for d in content.pop("system", ())
    )
    content["plan"] = _made(FoldPlan, content.pop("split", {}), f"{where}: split")
    experiment = replace(_made(Experiment, content, where), changes=tuple(changes))
    _check(experiment, where)
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


def _made(kind: type, table: Any, where: str) -> Any:
    """Make a dataclass of a TOML table; refuse unknown keys, missing ones and wrong types."""
    if not isinstance(table, dict):
        raise UsageError(f"{where}: found {table!r}, expected a table")
    known = {f.name: f for f in fields(kind) if f.name != "changes"}
    for key in table:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            raise UsageError(
                f"{where}: {key!r} is not known; expected some of {', '.join(known)}"
                + (f"; did you mean {near[0]!r}?" if near else "")
            )
    values = {}
    for name, described in known.items():
        required = described.default is MISSING and described.default_factory is MISSING
        if name not in table and required:
            raise UsageError(f"{where}: {name!r} is missing")
        if name in table:
            values[name] = _typed(described.type, table[name], f"{where}: {name}")
    return kind(**values)


def _typed(kind: Any, value: Any, where: str) -> Any:
    wanted = get_origin(kind) or kind
    if isinstance(value, list):
        value = tuple(tuple(v) if isinstance(v, list) else v for v in value)
    if wanted is float and isinstance(value, int):
        value = float(value)
    if not isinstance(value, wanted) or isinstance(value, bool):
        raise UsageError(f"{where}: found {value!r}, expected {wanted.__name__}")
    return value


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
    _check_recipe(experiment.recipe, where)
    for system in experiment.systems:
        _check_system(system, f"{where}: system {system.name}")


def _check_recipe(recipe: dict[str, Any], where: str) -> None:
    defaults: Mapping[str, Any] = vars(TrainingSettings())
    for key, value in recipe.items():
        if key not in defaults or key in (*_OF_THE_SYSTEM, "synthetic_fraction"):
            allowed = [n for n in defaults if n not in (*_OF_THE_SYSTEM, "synthetic_fraction")]
            raise UsageError(f"{where}: recipe: {key!r}; expected some of {', '.join(allowed)}")
        kind = int if key == "steps" else type(defaults[key])
        recipe[key] = _typed(kind, value, f"{where}: recipe: {key}")


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
