"""Corrects the MLflow store of a checkout that was moved: the store has absolute paths."""

import sqlite3
from contextlib import closing
from urllib.parse import quote

from simple_llama.errors import InputError
from simple_llama.process import file_lock
from simple_llama.tracking.location import Location, local_path, other_checkout_artifacts

ARTIFACT_PATH_COLUMNS = {
    "experiments": ("artifact_location",),
    "runs": ("artifact_uri",),
    "logged_models": ("artifact_location",),
    "model_versions": ("source", "storage_location"),
}
"""Table → columns with paths of artifacts in MLflow's SQLite store."""


def relocate() -> dict[str, int]:
    """Change artifact paths of this repository's store that lead to another checkout.

    Returns the number of changed paths by the folder to which they led. Raises InputError where the
    store is not a SQLite file or does not exist.
    """
    location = Location.find()
    if location.database is None:
        raise InputError(f"{location.uri}: a server keeps its own paths, wanted a SQLite store")
    if not location.database.exists():
        raise InputError(f"{location.database}: no such file")
    changed: dict[str, int] = {}
    with (
        file_lock(location.lock),
        closing(sqlite3.connect(location.database)) as database,
        database,
    ):
        places = [row[0] for row in database.execute("SELECT artifact_location FROM experiments")]
        foreign = {root for place in places if (root := other_checkout_artifacts(location, place))}
        for table, columns in ARTIFACT_PATH_COLUMNS.items():
            for column in columns:
                # no injection: names come from ARTIFACT_PATH_COLUMNS, values are bound
                for (old,) in database.execute(f"SELECT DISTINCT {column} FROM {table}").fetchall():
                    path = local_path(old)
                    root = next((r for r in foreign if path and path.is_relative_to(r)), None)
                    if path is None or root is None:
                        continue
                    rest = path.relative_to(root)
                    new = "/".join([str(location.artifacts), *map(quote, rest.parts)])
                    done = database.execute(
                        f"UPDATE {table} SET {column} = ? WHERE {column} = ?",
                        (new, old),
                    )
                    changed[str(root)] = changed.get(str(root), 0) + done.rowcount
    return changed
