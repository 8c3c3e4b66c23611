"""Give an adapted model to others through the Hugging Face hub."""

from das3.hub.push import Pushed, push_run, stage_run

__all__ = ["Pushed", "push_run", "stage_run"]
