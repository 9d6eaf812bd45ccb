"""The table of an experiment: measured beside printed, and everything that must be told."""

import json

import pandas as pd
import pytest

from bagau_bids.errors import UsageError
from bagau_bids.reports.experiment import write_experiment_table

SCORES = {
    "hausdorff95_mm": 4.0,
    "volume_difference_percent": 20.0,
    "lesion_recall": 0.6,
    "lesion_precision": 0.5,
    "lesion_f1": 0.55,
    "reference_ml": 1.0,
    "result_ml": 1.2,
}
PAPER_RECIPE = {"epochs": 200, "batch_size": 32, "crop": [200, 200], "steps": None}


def complete(folder, system, fold, rows, **more):
    path = folder / system / f"fold-{fold}" / "complete.json"
    path.parent.mkdir(parents=True)
    machine = {
        "processor": "P",
        "cores": 2,
        "threads": 1,
        "device": "cpu",
        "torch": "2",
        "load": 1.5,
    }
    content = {
        "system": system,
        "fold": fold,
        "scans": {"training": ["sub-1"], "validation": ["sub-2"], "test": ["sub-3"]},
        "rows": [{"system": system, "fold": fold, "dataset": 0, **SCORES, **row} for row in rows],
        "machine": machine,
        **more,
    }
    path.write_text(json.dumps(content))


@pytest.fixture
def folder(tmp_path):
    """Two folds: a network of two seeds (done twice), a threshold (done once), no rater."""
    scans = {"training": ["sub-1"], "validation": ["sub-2"], "test": ["sub-3"]}
    plan = {
        "title": "Table | 2",
        "source": "the paper",
        "caveats": ["Small."],
        "changes": ["recipe.steps=3"],
        "recipe": {"steps": 3, "batch_size": 8, "crop": [100, 200]},
        "paper_recipe": PAPER_RECIPE,
        "checkpoint": "best",
        "data": [{"name": "d", "description": {"Name": "D"}, "scans": 4, "people": 3}],
        "left_out": {"sub-9": "no mask"},
        "systems": [
            {"name": "net", "label": "Net", "paper": {"dice": 81.39}, "note": "", "seeds": [0, 1]},
            {"name": "cut", "label": "Cut", "paper": {}, "note": "plain", "seeds": [0]},
            {"name": "rater", "label": "Rater", "paper": {}, "note": "one only", "seeds": [0]},
        ],
        "folds": [{"number": n, "scans": scans} for n in (1, 2)],
        "jobs": ["net/fold-1", "net/fold-2", "cut/fold-1", "cut/fold-2"],
    }
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    cost = {"steps": 3, "seconds_per_step": 2.0, "training_slices": 100, "parameters": 1.7e6}
    for fold, dice in ((1, 0.6), (2, 0.8)):
        rows = [
            {"member": "0", "scan": f"sub-{fold}", "dice": dice},
            {"member": "1", "scan": f"sub-{fold}", "dice": dice - 0.1},
            {"member": "ensemble", "scan": f"sub-{fold}", "dice": dice + 0.05},
        ]
        costs = [{"seed": 0, **cost}, {"seed": 1, **cost}]
        complete(tmp_path, "net", fold, rows, cost=costs)
    rows = [{"member": "0", "scan": "sub-1", "dice": 0.3}]
    complete(tmp_path, "cut", 1, rows, z_score_threshold=2.1)
    failed = tmp_path / "cut" / "fold-2" / "failure.json"
    failed.parent.mkdir()
    failed.write_text('{"reason": "it <broke>"}')
    return tmp_path


def test_table_has_measured_and_printed_figures(folder):
    written = write_experiment_table(folder)
    assert (written.done, written.planned) == (3, 4)
    assert written.unfinished == {"cut/fold-2": "it <broke>"}
    table = pd.read_csv(folder / "table.tsv", sep="\t", index_col="system", na_values="n/a")
    assert list(table.index) == ["net", "net-ensemble", "cut", "rater"]
    assert table.loc["net", "dice"] == pytest.approx(65)  # mean over seeds, then scans
    assert table.loc["net", "dice_sd"] == pytest.approx(14.14, abs=0.01)
    assert table.loc["net-ensemble", "dice"] == pytest.approx(75)
    assert table.loc["net", "dice_paper"] == 81.39
    assert pd.isna(table.loc["net-ensemble", "dice_paper"])
    assert (table.loc["net", "avd"], table.loc["net", "recall"]) == (20, 60)
    assert list(table["folds"]) == [2, 2, 1, 0]
    assert pd.isna(table.loc["cut", "dice_sd"])  # of one scan there is none
    assert pd.isna(table.loc["rater", "dice"])
    text = (folder / "table.tsv").read_text()
    assert "nan" not in text.lower()
    described = json.loads((folder / "table.json").read_text())
    assert list(described) == text.splitlines()[0].split("\t")
    assert len(pd.read_csv(folder / "cases.tsv", sep="\t")) == 7
    assert list(json.loads((folder / "cases.json").read_text()))[-1] == "result_ml"


def test_markdown_reads_as_a_table_with_its_caveats(folder):
    write_experiment_table(folder)
    lines = (folder / "table.md").read_text().splitlines()
    rows = [line for line in lines if line.startswith("| Net ")]
    assert rows[0].split(" | ")[:5] == ["| Net", "2", "2 of 2", "65.0 ± 14.1", "81.39"]
    assert "| Net, ensemble of 2 [1] | 2 | 2 of 2 | 75.0 ± 14.1 | n/a |" in "\n".join(lines)
    assert "| Rater [3] | 0 | 0 of 2 | n/a | n/a |" in "\n".join(lines)
    text = "\n".join(lines)
    for told in (
        "- Small.",
        "Changed on the command line: recipe.steps=3.",
        "steps 3 (paper 200 epochs), batch_size 8 (paper 32)",
        "d: D, 4 scans of 3 subjects",
        "sub-9 is in no row: no mask",
        "cut/fold-1: z-score 2.1, chosen on its training scans",
        "- cut/fold-2: it <broke>",
        "P, 2 cores, 1 threads a job, cpu, torch 2 (3 jobs)",
    ):
        assert told in text


def test_cost_of_the_whole_recipe_follows_from_measured_steps(folder):
    """100 slices: 4 steps an epoch, 800 in all; a step has 4 x 2 times the pixels: 16 s."""
    write_experiment_table(folder)
    (row,) = [line for line in (folder / "table.md").read_text().splitlines() if "1.70 M" in line]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells == [
        "Net", "1.70 M", "4 of 4", "3", "2.00", "0.01", "800", "16.0", "3.6", "14",
    ]  # fmt: skip


def test_page_escapes_and_names_what_is_not_done(folder):
    write_experiment_table(folder)
    page = (folder / "table.html").read_text()
    assert "it &lt;broke&gt;" in page
    assert "<td>65.0 ± 14.1</td>" in page
    assert page.count("<tr>") == 1 + 4 + 1 + 1


def test_experiment_that_has_not_begun_has_an_empty_table(folder):
    for path in folder.glob("*/*/complete.json"):
        path.unlink()
    written = write_experiment_table(folder)
    assert written.done == 0
    assert written.unfinished["net/fold-1"] == "not run yet"
    assert "| Net | 0 | 0 of 2 | n/a | 81.39 |" in (folder / "table.md").read_text()


def test_other_folder_is_refused(tmp_path):
    with pytest.raises(
        UsageError, match=r"plan.json: no such file; expected the folder of an exp"
    ):
        write_experiment_table(tmp_path)
