"""A run's model as a repository of the Hugging Face hub: its files and a card, and nothing else of the run."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from das3.errors import ModelError, RecipeError
from das3.files import write_atomically
from das3.hub.card import model_card
from das3.hub.private import own_places, refuse_places, without_paths_in
from das3.models.extras import library
from das3.models.metadata import METADATA_FILE, read_metadata
from das3.report.run_folder import RunFolder

__all__ = ["Pushed", "push_run", "stage_run"]

_WEIGHTS = frozenset({".safetensors", ".bin", ".pt"})
_VOCABULARY = frozenset({"merges.txt", "vocab.txt"})
_SETTINGS = frozenset({METADATA_FILE, "config.json", "preprocessor_config.json", "processor_config.json"})
"""Files in which libraries note where something came from."""
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True)
class Pushed:
    """What was pushed.

    Attributes:
        url: of the repository.
        files: names of its files that came from here.
    """

    url: str
    files: list[str]


def stage_run(run: str | Path, repository: str, folder: str | Path, *, license: str | None = None) -> list[str]:
    """Write the folder that `push_run` uploads: the model's weights and settings, and README.md.

    Only files that das3 and the model's library write are taken: no images, no report, no log, no labels. Absolute
    paths in settings are cut to their last component.

    Args:
        run: a finished run.
        repository: owner/name.
        folder: new or empty.
        license: see `das3.hub.card.model_card`.

    Returns:
        Names of the files, sorted.

    Raises:
        RecipeError: if the run is not finished, the repository's name can't be, or the folder holds something.
        ModelError: if the model's files are damaged, or one holds a path of this machine.
    """
    found, folder = RunFolder.open(run), Path(folder)
    _check_repository(repository)
    model = found.folder / "model"
    if not found.summary or not (model / METADATA_FILE).is_file():
        raise RecipeError(f"{found.folder}: the run is not finished; go on with --resume first")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RecipeError(f"{folder} is not empty; name a new folder with --out")
    folder.mkdir(parents=True, exist_ok=True)
    for path in sorted(model.iterdir()):
        if not path.is_file() or path.is_symlink():
            continue
        if path.name in _SETTINGS:
            (folder / path.name).write_bytes(without_paths_in(path))
        elif path.suffix in _WEIGHTS | {".json"} or path.name in _VOCABULARY:
            shutil.copyfile(path, folder / path.name)
    metadata = read_metadata(folder)
    assert metadata is not None
    write_atomically(folder / "README.md", model_card(found, metadata, repository, license))
    refuse_places(folder, own_places(found.folder, found.recipe))
    return sorted(path.name for path in folder.iterdir())


def push_run(run: str | Path, repository: str, *, private: bool = False, license: str | None = None) -> Pushed:
    """Upload the model of a run, with a card.

    Args:
        run: a finished run.
        repository: owner/name; made if it is not there.
        private: refuse one that others can see.
        license: see `das3.hub.card.model_card`.

    Raises:
        RecipeError, ModelError: as `stage_run`, or if the hub can't be reached, refuses, or has a public repository of
            this name where a private one is asked for.
    """
    hub = library("huggingface_hub", "hub")
    with tempfile.TemporaryDirectory(prefix=".hub.", dir=run) as partial:
        folder = Path(partial) / "model"
        files = stage_run(run, repository, folder, license=license)
        try:
            url = _upload(hub.HfApi(endpoint=os.environ.get("HF_ENDPOINT")), folder, repository, private=private)
        except ModelError:
            raise
        except Exception as error:  # of the hub, its client or the network
            raise ModelError(f"{repository}: not pushed ({_reason(error)})") from error
    return Pushed(url, files)


def _upload(api: Any, folder: Path, repository: str, *, private: bool) -> str:
    """Returns the repository's address."""
    url = api.create_repo(repository, private=private or None, exist_ok=True)
    if private and not api.model_info(repository).private:
        raise ModelError(
            f"{repository}: is there already and can be seen by everybody; nothing was pushed: make it private in its "
            "settings, or name another"
        )
    api.upload_folder(
        repo_id=repository, folder_path=folder, commit_message="Model adapted by das3", allow_patterns=["*"]
    )
    return str(url)


def _check_repository(name: str) -> None:
    if not _REPOSITORY.fullmatch(name) or ".." in name or len(name) > 96:
        raise RecipeError(f"{name!r} is no name of a repository; it must be owner/name, of letters, digits, - _ and .")


def _reason(error: Exception) -> str:
    """An error of the hub's client in one line, with the way on where it is known."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status == 401 or type(error).__name__ == "LocalTokenNotFoundError":
        return "the hub does not know you; log in with `hf auth login`, or set HF_TOKEN"
    if status == 403:
        return "your token may not write there; make one with the right to write, for this owner"
    lines = [line for line in str(error).strip().splitlines() if line.strip()] or [""]
    return " ".join(f"{type(error).__name__}: {lines[0]}".split())[:300]
