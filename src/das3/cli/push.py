"""`das3 push`: a run's model as a repository of the Hugging Face hub, with a model card."""

from __future__ import annotations

import shutil
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from das3.errors import RecipeError
from das3.hub import push_run, stage_run

__all__ = ["HELP", "add", "run"]

HELP = """
das3 push RUN owner/name --dry-run
das3 push RUN owner/name --private

The model's weights and settings are pushed, and a card that says where it comes from; no images, no labels, no paths of
this machine. Needs pip install 'das3[hub]', and to be logged in: `hf auth login`, or HF_TOKEN.
"""


def add(parser: ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument("folder", metavar="RUN", type=str, help="the run folder")
    parser.add_argument("repository", metavar="OWNER/NAME", type=str, help="the repository; made if it is not there")
    parser.add_argument("--private", action="store_true", help="only for you: refuses a repository that others can see")
    parser.add_argument(
        "--license", type=str, default=None, help="licence for the card, as the hub names it, such as apache-2.0"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="write what would be pushed to a folder, and push nothing"
    )
    parser.add_argument("--out", type=str, default=None, help="that folder, with --dry-run; RUN/hub by default")


def run(given: Namespace) -> None:
    """Push, and print the repository's address; or write the folder."""
    if given.out is not None and not given.dry_run:
        raise RecipeError("--out is for --dry-run; a push leaves nothing here")
    if given.dry_run:
        folder = Path(given.out) if given.out else Path(given.folder) / "hub"
        if given.out is None:
            shutil.rmtree(folder, ignore_errors=True)  # of an earlier dry run
        files = stage_run(given.folder, given.repository, folder, license=given.license)
        print(f"would push to {given.repository}: {', '.join(files)}")
        print(f"nothing was pushed; look at {folder}/README.md")
        return
    pushed = push_run(given.folder, given.repository, private=given.private, license=given.license)
    print(f"pushed: {', '.join(pushed.files)}")
    print(f"model:  {pushed.url}")
    if given.license is None:
        print("note:   the card's licence is to be filled in (--license, or on the hub)")
