"""Errors that das3 raises. Each message says what is wrong, where, and what to do about it.

The docstrings are the pages under docs/errors, which the command line names behind each message.
"""

from __future__ import annotations

import re

__all__ = [
    "Das3Error",
    "DataError",
    "DivergedError",
    "ModelError",
    "RecipeError",
    "TrainingError",
    "printable",
    "without_page",
]


def printable(text: str) -> str:
    """Text in one line that a terminal only shows: file names may hold line breaks, codes that clear the screen, and
    bytes that are no text.
    """
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)
    return shown.encode("utf-8", "backslashreplace").decode()


class Das3Error(Exception):
    """Base of every error that a user can act on; the command line prints it as one line and exits with 2.

    Python code that wants to catch whatever das3 has to say of its input catches this class. Anything else that is
    raised is a fault of das3: please report it with the whole traceback.

    Attributes:
        is_told: of several processes another one prints it.
    """

    is_told: bool = False

    @classmethod
    def page(cls) -> str:
        """Where the docs say more about this kind of error."""
        return f"docs/errors/{cls.__name__}.md"

    def in_one_line(self) -> str:
        """The message and the page, as the command line prints them."""
        return f"{self} ({self.page()})"


class ModelError(Das3Error):
    """The model, its weights or its classifier can't be used as given.

    Usual causes, and what helps:

    - **The path or the name is not that of a model.** `--model` takes a folder saved by Hugging Face, smp or das3, a
      hub id, `torchvision:NAME`, `smp:NAME` or `package.module:function`. A file of weights goes to `--weights`, and
      the network that it is for to `--model`. See [models](../models.md).
    - **The weights do not fit the network.** The message names the first keys that are missing or of another shape.
      The number of classes and the encoder have to be those that were trained: `--num-classes`, `--model-args`.
    - **The classifier was not found.** das3 takes the last layers that produce the logits. Where other layers follow,
      name it with `--classifier`; the message lists the candidates.
    - **The network returns probabilities.** Build it without its last softmax or sigmoid: das3 needs the logits.
    - **The folder names code.** It is run only with `--trust`, or where the command line itself names it.
    - **A library is missing.** The message ends with the extra that installs it, e.g. `das3[smp]`.
    """


class DataError(Das3Error):
    """Images, labels or a class table can't be used as given.

    Usual causes, and what helps:

    - **No images were found**, or a listed one is not there. The message names the place that was searched.
    - **A file can't be read.** The message names it: repair it, or take it out. Images are checked before the
      training.
    - **Images have too few bands, or values of an unknown range.** See [16-bit and multi-band
      images](../science_images.md): `--bands`, `--pixel-range`.
    - **Labels have ids that are in no class.** Give the table with `--classes`, or map the ids with `--class-map`;
      export labels as PNG, since JPEG changes them. See [your data](../howto/my_data.md).
    - **A label has another size than its image.** das3 never resizes labels: export them at the size of the images.
    """


class RecipeError(Das3Error):
    """An option has a value that can't work, or two options contradict each other.

    Usual causes, and what helps:

    - **An option is misspelt.** The message suggests the one that is probably meant; `das3 COMMAND --help-all` lists
      all.
    - **A value is out of its range.** The message names the range.
    - **The run folder belongs to another run.** Continue with the options that it was started with, or name another
      `--out`.
    - **The device is not there.** `--device auto` takes what is there; see [without a GPU](../howto/no_gpu.md).
    - **A recipe file is out of date.** The message names the new name of the option.
    """


class TrainingError(Das3Error):
    """Training can't continue: a process is gone, or a checkpoint does not belong to the run.

    Usual causes, and what helps:

    - **A process was ended**, most often by the system because memory ran out. The run goes on with `--resume`; lower
      `--batch-size` or `--crop` for the next one. See [many GPUs](../howto/many_gpus.md).
    - **A checkpoint does not fit.** It was written by a run with other options: name another `--out`.
    """


class DivergedError(TrainingError):
    """A loss is not finite, so the stage can't be trained as it is set.

    Usual causes, and what helps:

    - **The learning rate is too high** for this network: `--align.lr 1e-5`, likewise for the other stages.
    - **The preprocessing is not that of the model**, so it sees values far away from those it was trained on: give
      its `--mean`, `--std` and `--input-max`.
    - **16-bit floating point overflows**: `--precision 32`, or `bf16` where the GPU has it.
    """


class Terminated(KeyboardInterrupt):
    """SIGTERM came; like Ctrl-C it is not an error, and no `except Exception` holds it up."""


def without_page(line: str) -> str:
    """A line as `Das3Error.in_one_line` makes it, without the page."""
    return re.sub(r" \(docs/errors/\w+\.md\)$", "", line)
