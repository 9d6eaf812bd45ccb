"""The table of an experiment: measured beside printed, and everything that must be told."""

import json

import pandas as pd
import pytest
from experiment_folder import write_experiment

from bagau_bids.errors import UsageError
from bagau_bids.experiments.report import write_experiment_table


@pytest.fixture
def folder(tmp_path):
    write_experiment(tmp_path)
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


def damage(path, *keys, value):
    """Put a value into a JSON file, or take the key out where there is none."""
    content = json.loads(path.read_text())
    *parents, last = keys
    inner = content
    for key in parents:
        inner = inner[key]
    if value is None:
        del inner[last]
    else:
        inner[last] = value
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("name", "keys", "value", "message"),
    [
        ("plan.json", ["jobs"], None, "missing required field `jobs`"),
        ("plan.json", ["folds", 1, "scans", "test"], 3, r"`int` - at `\$.folds\[1\].scans.test`"),
        ("plan.json", ["recipe", "step"], 3, r"unknown field `step` - at `\$.recipe`"),
        ("plan.json", ["paper_recipe", "crop"], "all", r"`str` - at `\$.paper_recipe.crop`"),
        ("net/fold-1/complete.json", ["machine"], None, "missing required field `machine`"),
        ("net/fold-1/complete.json", ["rows", 2, "dice"], "0.8", r"at `\$.rows\[2\].dice`"),
        ("net/fold-1/complete.json", ["cost", 0, "steps"], "3", r"at `\$.cost\[0\].steps`"),
        ("cut/fold-2/failure.json", ["reason"], None, "missing required field `reason`"),
    ],
)
def test_damaged_file_is_named_with_its_field(folder, name, keys, value, message):
    damage(folder / name, *keys, value=value)
    hint = ".*; expected what 'bagau experiment' writes: remove the file and give the command"
    with pytest.raises(UsageError, match=f"{name}: .*{message}{hint}"):
        write_experiment_table(folder)


def test_score_that_is_no_number_is_left_out_of_the_mean(folder):
    path = folder / "net/fold-1/complete.json"
    path.write_text(path.read_text().replace('"hausdorff95_mm": 4.0', '"hausdorff95_mm": null'))
    write_experiment_table(folder)
    table = pd.read_csv(folder / "table.tsv", sep="\t", index_col="system", na_values="n/a")
    assert table.loc["net", "h95"] == 4
