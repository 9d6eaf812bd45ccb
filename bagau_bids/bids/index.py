"""Keeping pybids to what lies below the root of a data set.

pybids looks for entities in the whole path of a file: below ``/scratch/ses-2/`` or ``/func/`` it
takes the names of folders that are no part of the data set for the session or the datatype.
"""

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bids.layout import BIDSLayout


def rooted_config(root: Path) -> dict[str, Any]:
    """Return pybids' configuration of raw data with patterns that begin at the root.

    Parameters
    ----------
    root
        Root of the data set, as pybids will be given it.

    Returns
    -------
    dict
        For the argument ``config`` of a ``BIDSLayout``.
    """
    from bids.config import get_option

    with Path(get_option("config_paths")["bids"]).open(encoding="utf-8") as file:
        config = json.load(file)
    beginning = rf"^{re.escape(str(root.absolute()))}(?s:.*?)"
    entities = [
        {**entity, "pattern": f"{beginning}(?:{entity['pattern']})"}
        for entity in config["entities"]
    ]
    return {**config, "entities": entities}


def entities_above(layout: "BIDSLayout") -> dict[str, str]:
    """Return what an index takes for entities in the path above its own root.

    Parameters
    ----------
    layout
        Made with any configuration; an index on disk may be of another program.

    Returns
    -------
    dict
        The words of the path by entity; empty as it should be.
    """
    above = f"{layout.root}/"
    matches = {
        name: re.search(entity.pattern, above)
        for name, entity in layout.get_entities().items()
        if entity.pattern
    }
    return {name: match.group(1) for name, match in matches.items() if match}
