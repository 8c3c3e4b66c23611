"""What torchrun runs in the tests: adaptations by several methods, one after the other, each into a folder of its own.

Arguments: a JSON file with model, images, labels, out, and options of `adapt` by name.
"""

import json
import sys
from pathlib import Path

from das3.api import adapt
from das3.data.open import open_labelled
from das3.distributed import is_first_process, process_count, wait_for_all


def adaptations(task, folder):
    """Run all of them; folder → where each went."""
    found = {}
    for name, options in task["runs"].items():
        result = adapt(
            task["model"],
            task["images"],
            out=folder and Path(folder) / name,
            evaluation=open_labelled(task["images"], task["labels"], task["classes"]),
            quiet=True,
            **options,
        )
        found[name] = str(result.folder)
    return found


if __name__ == "__main__":
    task = json.loads(Path(sys.argv[1]).read_text())
    assert process_count() == 1  # there is no group before the first run
    found = adaptations(task, task["out"])
    assert process_count() == 2
    temporary = adapt(task["model"], task["images"], quiet=True, device="cpu", stages=["bn"]).folder
    wait_for_all()
    assert (temporary / "summary.json").is_file()
    if is_first_process():
        Path(task["out"], "folders.json").write_text(json.dumps(found))
    Path(task["out"], f"temporary-{is_first_process()}.txt").write_text(str(temporary))
