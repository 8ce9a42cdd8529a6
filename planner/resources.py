"""The files that ship with the program, found the same way wherever it runs.

In a checkout or an editable install, LLM cards and instances lie in the top-level folders
`models/` and `instances/`; in a wheel the build packs them under `planner/_packed/`. Everything
else (`data/`, the JSON Schema, report templates) lies inside the package itself.
"""

from __future__ import annotations

from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Final

from planner.errors import PlannerError

_PACKED_FOLDERS: Final = ("models", "instances")


def folder(name: str) -> Traversable:
    """The folder `models` or `instances`, or a folder of the package such as `data`.

    Raises PlannerError when it is missing, which only a broken installation can cause.
    """
    package = files("planner")
    candidates: list[Traversable] = [package / name]
    if name in _PACKED_FOLDERS:
        candidates = [package / "_packed" / name, Path(__file__).parents[1] / name]
    for candidate in candidates:
        if candidate.is_dir():
            return candidate
    raise PlannerError(f"the folder {name!r} is missing from this installation; reinstall planner")


def resource(name: str) -> Traversable:
    """One file by its name: `models/x.yaml`, `instances/x.yaml`, `schema/x.json`.

    A bare file name is looked up in `data/`. Raises PlannerError when there is no such file.
    """
    parent, _, file_name = name.rpartition("/")
    found: Traversable = folder(parent or "data") / file_name
    if not found.is_file():
        raise PlannerError(f"the file {name!r} is missing from this installation")
    return found


def read_text(name: str) -> str:
    """The text of one shipped file (UTF-8); `name` as for `resource`."""
    return resource(name).read_text(encoding="utf-8")


def model_card_paths() -> list[Traversable]:
    """Every shipped LLM card (`models/*.yaml`), sorted by file name."""
    return _yaml_files("models")


def instance_paths() -> list[Traversable]:
    """Every shipped problem instance (`instances/*.yaml`), sorted by file name."""
    return _yaml_files("instances")


def _yaml_files(name: str) -> list[Traversable]:
    found = [item for item in folder(name).iterdir() if item.name.endswith(".yaml")]
    if not found:
        raise PlannerError(f"the folder {name!r} of this installation is empty")
    return sorted(found, key=lambda item: item.name)
