"""The folder of an experiment that is partly done, as its jobs leave it."""

import json

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
        "key": "k",
        "system": system,
        "fold": fold,
        "scans": {"training": ["sub-1"], "validation": ["sub-2"], "test": ["sub-3"]},
        "rows": [{"system": system, "fold": fold, "dataset": 0, **SCORES, **row} for row in rows],
        "machine": machine,
        "version": "1",
        "finished": "2026-01-01T00:00:00+00:00",
        **more,
    }
    path.write_text(json.dumps(content))


def write_experiment(folder):
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
    (folder / "plan.json").write_text(json.dumps(plan))
    cost = {"steps": 3, "seconds_per_step": 2.0, "training_slices": 100, "parameters": 1_700_000}
    for fold, dice in ((1, 0.6), (2, 0.8)):
        rows = [
            {"member": "0", "scan": f"sub-{fold}", "dice": dice},
            {"member": "1", "scan": f"sub-{fold}", "dice": dice - 0.1},
            {"member": "ensemble", "scan": f"sub-{fold}", "dice": dice + 0.05},
        ]
        costs = [{"seed": 0, **cost}, {"seed": 1, **cost}]
        complete(folder, "net", fold, rows, cost=costs)
    rows = [{"member": "0", "scan": "sub-1", "dice": 0.3}]
    complete(folder, "cut", 1, rows, z_score_threshold=2.1)
    failed = folder / "cut" / "fold-2" / "failure.json"
    failed.parent.mkdir()
    failed.write_text('{"reason": "it <broke>"}')
