"""The table of an experiment, from the files in its folder and nothing else.

``plan.json`` says what was asked for, ``SYSTEM/fold-N/complete.json`` what came out. From them
come ``cases.tsv``, ``table.tsv`` (each with its sidecar), ``table.md`` and ``table.html``: the
measured figures beside the printed ones, the caveats, what it cost, and what the paper's whole
recipe would cost at the measured speed.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
import msgspec
import pandas as pd
from msgspec import structs

from bagau_bids.bids.tables import Column, column_descriptions
from bagau_bids.errors import UsageError
from bagau_bids.experiments.records import (
    COMPLETE,
    ENSEMBLE,
    FAILURE,
    PLAN,
    FailureRecord,
    JobRecord,
    PlannedSystem,
    PlanRecord,
    read_record,
)
from bagau_bids.files import write_json, write_table, write_text
from bagau_bids.training.settings import TrainingSettings

# column of the table: column of the cases, and the factor between them
MEASURED = {
    "dice": ("dice", 100),
    "avd": ("volume_difference_percent", 1),
    "recall": ("lesion_recall", 100),
    "f1": ("lesion_f1", 100),
    "h95": ("hausdorff95_mm", 1),
}
HEADINGS = {"dice": "DSC %", "avd": "AVD %", "recall": "Recall %", "f1": "F1 %", "h95": "H95 mm"}


@dataclass(frozen=True)
class ExperimentTable:
    """What was written.

    Attributes
    ----------
    path
        The Markdown; the other files lie beside it.
    done, planned
        Numbers of jobs.
    unfinished
        Why, by job.
    """

    path: Path
    done: int
    planned: int
    unfinished: dict[str, str]


def write_experiment_table(folder: Path) -> ExperimentTable:
    """Gather all jobs that are done; may be run at any time.

    Parameters
    ----------
    folder : Path
        Output folder of the experiment.

    Raises
    ------
    UsageError
        If it is none, or one of its files is damaged.
    """
    plan_path = folder / PLAN
    if not plan_path.is_file():
        raise UsageError(
            f"{plan_path}: no such file; expected the folder of an experiment, as 'bagau "
            "experiment' makes it"
        )
    plan = read_record(plan_path, PlanRecord)
    done, unfinished = dict[str, JobRecord](), dict[str, str]()
    for name in plan.jobs:
        complete, failure = folder / name / COMPLETE, folder / name / FAILURE
        if complete.is_file():
            done[name] = read_record(complete, JobRecord)
        elif failure.is_file():
            unfinished[name] = read_record(failure, FailureRecord).reason
        else:
            unfinished[name] = "not run yet"
    cases = pd.DataFrame(
        [structs.asdict(row) for result in done.values() for row in result.rows],
        columns=list(_columns("cases")),
    )
    table = _table(plan, cases, done)
    costs = _costs(plan, done)
    write_table(folder / "cases.tsv", cases)
    write_json(folder / "cases.json", _columns("cases"))
    write_table(folder / "table.tsv", table)
    write_json(folder / "table.json", _columns("table"))
    page = {
        "title": plan.title,
        "source": plan.source,
        "headings": _headings(),
        "rows": [_shown(row) for row in table.to_dict("records")],
        "remarks": _remarks(plan, done),
        "unfinished": unfinished,
        "costs": costs,
        "machines": _machines(done),
    }
    write_text(folder / "table.md", _markdown(page))
    write_text(folder / "table.html", _html(page))
    return ExperimentTable(folder / "table.md", len(done), len(plan.jobs), unfinished)


def _columns(kind: str) -> dict[str, Column]:
    return column_descriptions({"cases": "experiment_cases", "table": "experiment"}[kind])


def _table(plan: PlanRecord, cases: pd.DataFrame, done: Mapping[str, JobRecord]) -> pd.DataFrame:
    rows = []
    for system in plan.systems:
        own = cases[cases["system"] == system.name]
        folds = sum(result.system == system.name for result in done.values())
        single = _row(plan, system, own[own["member"] != ENSEMBLE], folds)
        rows.append(single)
        if len(system.seeds) > 1:
            together = _row(plan, system, own[own["member"] == ENSEMBLE], folds)
            rows.append(
                together
                | {f"{name}_paper": None for name in MEASURED}
                | {
                    "system": f"{system.name}-{ENSEMBLE}",
                    "label": f"{system.label}, ensemble of {len(system.seeds)}",
                    "note": "mean probability of the networks above",
                }
            )
    table = pd.DataFrame(rows, columns=list(_columns("table")), dtype=object)
    for name, described in _columns("table").items():
        if described.units in ("scans", "folds"):
            table[name] = table[name].astype("Int64")
        elif described.units:
            table[name] = table[name].astype("Float64").round(2)
    return table


def _row(
    plan: PlanRecord, system: PlannedSystem, cases: pd.DataFrame, folds: int
) -> dict[str, Any]:
    row = {
        "system": system.name,
        "label": system.label,
        "cases": cases["scan"].nunique(),
        "folds": folds,
        "folds_planned": len(plan.folds),
        "note": system.note or None,
    }
    for name, (column, factor) in MEASURED.items():
        of_scan = cases.groupby(["dataset", "scan"])[column].mean() * factor
        row[name] = of_scan.mean() if len(of_scan) else None
        row[f"{name}_sd"] = of_scan.std() if len(of_scan) > 1 else None
        row[f"{name}_paper"] = system.paper.get(name)
    return row


def _headings() -> list[str]:
    columns = ["System", "Scans", "Folds"]
    for name, heading in HEADINGS.items():
        columns += [heading] if name == "h95" else [heading, "paper"]
    return columns


def _shown(row: Mapping[Any, Any]) -> dict[str, Any]:
    """One row as text: mean ± standard deviation, then the printed figure."""
    cells = [str(row["cases"]), f"{row['folds']} of {row['folds_planned']}"]
    for name in HEADINGS:
        mean, sd = row[name], row[f"{name}_sd"]
        digits = 1 if pd.isna(mean) or mean < 1000 else 0
        spread = "" if pd.isna(sd) else f" ± {sd:.{digits}f}"
        cells.append("n/a" if pd.isna(mean) else f"{mean:.{digits}f}{spread}")
        if name != "h95":
            printed = row[f"{name}_paper"]
            cells.append("n/a" if pd.isna(printed) else f"{printed:.2f}")
    note = row["note"]
    return {"label": row["label"], "cells": cells, "note": "" if pd.isna(note) else note}


def _remarks(plan: PlanRecord, done: Mapping[str, JobRecord]) -> list[str]:
    """Caveats: those of the file, then those that follow from what was done."""
    remarks = [*plan.caveats]
    if plan.changes:
        remarks.append(f"Changed on the command line: {', '.join(plan.changes)}.")
    if plan.recipe:
        paper = plan.paper_recipe
        told = ", ".join(_difference(key, value, paper) for key, value in plan.recipe.items())
        remarks.append(f"The recipe differs from the paper's: {told}.")
    sets = "; ".join(
        f"{one.name}: {one.description.get('Name', 'unnamed')}, {one.scans} scans of "
        f"{one.people} subjects"
        for one in plan.data
    )
    remarks.append(f"Data: {sets}. Nobody is in two parts of a fold.")
    for scan, reason in plan.left_out.items():
        remarks.append(f"{scan} is in no row: {reason}")
    planned = {fold.number: len(fold.scans) for fold in plan.folds}
    for name, result in done.items():
        missing = planned.get(result.fold, 0) - len(result.scans)
        if missing > 0:
            remarks.append(f"{name}: {missing} scans could not be preprocessed.")
    for name, result in done.items():
        if result.z_score_threshold is not None:
            remarks.append(
                f"{name}: z-score {result.z_score_threshold:g}, chosen on its training scans."
            )
    return remarks


def _difference(key: str, value: Any, paper: TrainingSettings) -> str:
    printed = getattr(paper, key)
    printed = list(printed) if isinstance(printed, tuple) else printed
    return f"{key} {value} (paper {f'{paper.epochs} epochs' if key == 'steps' else printed})"


def _costs(plan: PlanRecord, done: Mapping[str, JobRecord]) -> list[dict[str, Any]]:
    """Measured cost of each system, and what the paper's recipe would take at that speed."""
    paper = plan.paper_recipe
    recipe = msgspec.convert(asdict(paper) | plan.recipe, TrainingSettings)
    pixels, full_pixels = (one.batch_size * math.prod(one.crop) for one in (recipe, paper))
    heavier = full_pixels / pixels
    costs = []
    for system in plan.systems:
        own = [result for result in done.values() if result.system == system.name]
        trainings = pd.DataFrame([structs.asdict(cost) for one in own for cost in one.cost])
        if trainings.empty:
            continue
        seconds = float(trainings["seconds_per_step"].median())
        slices = float(trainings["training_slices"].mean())
        steps = paper.epochs * math.ceil(slices / paper.batch_size)
        hours = steps * seconds * heavier / 3600
        spent = (trainings["steps"] * trainings["seconds_per_step"]).sum() / 3600
        networks = len(plan.folds) * len(system.seeds)
        costs.append(
            {
                "label": system.label,
                "parameters": f"{trainings['parameters'].iloc[0] / 1e6:.2f} M",
                "trainings": f"{len(trainings)} of {networks}",
                "steps": str(int(trainings["steps"].max())),
                "seconds": f"{seconds:.2f}",
                "hours": f"{spent:.2f}",
                "full_steps": str(steps),
                "full_seconds": f"{seconds * heavier:.1f}",
                "full_hours": f"{hours:.0f}" if hours >= 10 else f"{hours:.1f}",
                "full_all": f"{hours * networks:.0f}" if hours >= 1 else f"{hours * networks:.1f}",
            }
        )
    return costs


COST_HEADINGS = {
    "label": "System",
    "parameters": "Parameters",
    "trainings": "Trainings done",
    "steps": "Steps each",
    "seconds": "s a step",
    "hours": "Hours in all",
    "full_steps": "Steps, whole recipe",
    "full_seconds": "s a step, whole recipe",
    "full_hours": "Hours a training",
    "full_all": "Hours for all trainings",
}
COST_NOTE = (
    "Steps and seconds on the left were measured (median over the trainings). On the right: the "
    "paper's epochs, batch and plane on the same scans and machine, with networks of the width "
    "trained here, seconds a step scaled by the number of pixels in it; an estimate, not a "
    "measurement."
)
TABLE_NOTE = (
    "Mean ± standard deviation over the test scans, percent as in the paper, which has no H95. F1 "
    "is that of the challenge's script, which exceeds 100 where lesions of the result cover "
    "several of the reference."
)


def _machines(done: Mapping[str, JobRecord]) -> list[str]:
    machines = [result.machine for result in done.values()]
    found = Counter(
        f"{one.processor}, {one.cores} cores, {one.threads} threads a job, {one.device}, "
        f"torch {one.torch}"
        for one in machines
    )
    busiest = max((one.load for one in machines), default=0)
    told = [f"{text} ({count} jobs)" for text, count in found.items()]
    return [*told, f"load of the machine at the end of a job: up to {busiest:g}"] if told else []


def _markdown(page: Mapping[str, Any]) -> str:
    lines = [f"# {page['title']}", "", f"Printed figures: {page['source']}", ""]
    told = dict.fromkeys(row["note"] for row in page["rows"] if row["note"])
    notes = {note: number for number, note in enumerate(told, 1)}
    rows = [[row["label"] + _mark(row, notes), *row["cells"]] for row in page["rows"]]
    lines += _markdown_table(page["headings"], rows)
    lines += ["", TABLE_NOTE, ""]
    lines += [f"[{number}] {note}  " for note, number in notes.items()]
    lines += ["", "## To bear in mind", "", *(f"- {remark}" for remark in page["remarks"]), ""]
    if page["unfinished"]:
        lines += ["## Not done", ""]
        lines += [f"- {name}: {reason}" for name, reason in page["unfinished"].items()]
        lines += [""]
    if page["costs"]:
        lines += ["## Cost", ""]
        rows = [[cost[key] for key in COST_HEADINGS] for cost in page["costs"]]
        lines += _markdown_table(list(COST_HEADINGS.values()), rows)
        lines += ["", COST_NOTE, "", *(f"- {machine}" for machine in page["machines"])]
    return "\n".join(lines).rstrip() + "\n"


def _mark(row: Mapping[str, Any], notes: Mapping[str, int]) -> str:
    return f" [{notes[row['note']]}]" if row["note"] else ""


def _markdown_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [headings, ["---"] + ["--:"] * (len(headings) - 1), *rows]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]


def _html(page: Mapping[str, Any]) -> str:
    folder = files("bagau_bids.data").joinpath("reports")
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    template = environment.from_string(folder.joinpath("experiment.html").read_text("utf-8"))
    return template.render(
        **page,
        cost_headings=COST_HEADINGS,
        cost_note=COST_NOTE,
        table_note=TABLE_NOTE,
        style=folder.joinpath("report.css").read_text("utf-8"),
    )
