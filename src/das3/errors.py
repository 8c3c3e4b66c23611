"""Errors that das3 raises. Each message says what is wrong, where, and what to do about it."""


class Das3Error(Exception):
    """Base of every error that a user can act on; the command line prints it as one line and exits with 2.

    Attributes:
        is_told: of several processes another one prints it.
    """

    is_told: bool = False


class ModelError(Das3Error):
    """The model, its weights or its classifier can't be used as given."""


class DataError(Das3Error):
    """Images, labels or a class table can't be used as given."""


class RecipeError(Das3Error):
    """An option has a value that can't work, or two options contradict each other."""


class TrainingError(Das3Error):
    """Training can't continue: a loss is not finite, or a checkpoint does not belong to the run."""


class DivergedError(TrainingError):
    """A loss is not finite, so the stage can't be trained as it is set."""


class Terminated(KeyboardInterrupt):
    """SIGTERM came; like Ctrl-C it is not an error, and no `except Exception` holds it up."""
