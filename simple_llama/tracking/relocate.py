"""A checkout that was moved takes its MLflow store along, but the store holds absolute paths."""

import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import unquote, urlparse

from simple_llama.errors import InputError
from simple_llama.process import file_lock
from simple_llama.tracking.location import ARTIFACTS, Location

COLUMNS = {
    "experiments": ("artifact_location",),
    "runs": ("artifact_uri",),
    "logged_models": ("artifact_location",),
    "model_versions": ("source", "storage_location"),
}
"""Where MLflow's SQLite store keeps paths of artifacts."""


def relocate() -> dict[str, int]:
    """Point the store of this repository to its artifacts; gives how many paths changed, by the
    folder that they led to before.

    Only paths below a `mlruns` folder that no longer exists are changed.

    Raises InputError where the store is no SQLite file, or there is none.
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
        for table, columns in COLUMNS.items():
            for column in columns:
                # names are those of COLUMNS, values are bound
                rows = database.execute(f"SELECT DISTINCT {column} FROM {table}").fetchall()
                for (old,) in rows:
                    place = _moved(old)
                    if place is None:
                        continue
                    new = f"{location.artifacts}{old.partition(f'/{ARTIFACTS}')[2]}"
                    done = database.execute(
                        f"UPDATE {table} SET {column} = ? WHERE {column} = ?",
                        (new, old),
                    )
                    changed[place] = changed.get(place, 0) + done.rowcount
    return changed


def _moved(uri: str | None) -> str | None:
    """The mlruns folder that a path leads to, where it is gone."""
    if uri is None or urlparse(uri).scheme not in ("", "file"):
        return None
    head, found, _ = unquote(urlparse(uri).path).partition(f"/{ARTIFACTS}")
    place = f"{head}{found}"
    return place if found and not Path(place).exists() else None
