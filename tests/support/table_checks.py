"""Check that a person who opens a table of the derivatives can learn what each column means."""

import json

import pandas as pd

from bagau_bids.bids.derivatives import sidecar_path

# Columns that BIDS itself defines, by the end of the name of their table.
BIDS_COLUMNS = {
    "descriptions.tsv": {"desc_id", "description"},
}
# Numbers of things, which have no unit.
NUMBERED = {"index", "mapping"}


def undescribed(output_dir):
    """Say of every table below a folder which columns lack a meaning or a unit."""
    problems = []
    for path in sorted(output_dir.rglob("*.tsv")):
        table = pd.read_csv(
            path, sep="\t", na_values="n/a", keep_default_na=False, dtype={"model_sha256": str}
        )
        known = next((c for end, c in BIDS_COLUMNS.items() if path.name.endswith(end)), set())
        sidecar = sidecar_path(path)
        described = json.loads(sidecar.read_text()) if sidecar.is_file() else {}
        figures = described.get("Figures", {})
        problems += [
            f"{path.name}: {name} of {n}"
            for n in figures
            for name in ("LongName", "Description", "Units")
            if not figures[n].get(name)
        ]
        for column in table.columns.difference(list(known)):
            entry = described.get(column, {})
            problems += [
                f"{path.name}: {name} of {column}"
                for name in ("LongName", "Description")
                if not entry.get(name)
            ]
            number = table[column].notna().any() and pd.api.types.is_numeric_dtype(table[column])
            # The unit of each value of a table of figures stands in the entry of its figure.
            stated = {"Units", "Levels"} & set(entry) or figures
            if number and column not in NUMBERED and not stated:
                problems.append(f"{path.name}: unit of {column}")
        if figures:
            rows = set(table["figure"]) - {"flags"}
            problems += [f"{path.name}: {name} is no figure" for name in rows - set(figures)]
    return problems
