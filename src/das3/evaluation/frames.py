"""Results as pandas tables, for those who have pandas."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from das3.errors import Das3Error

if TYPE_CHECKING:
    from pandas import DataFrame

__all__ = ["data_frame"]


def data_frame(rows: Sequence[Mapping[str, Any]], index: str) -> DataFrame:
    """A pandas table of the rows, with one of their entries as index.

    Raises:
        Das3Error: without pandas, which das3 does not need otherwise.
    """
    try:
        from pandas import DataFrame
    except ImportError as error:
        raise Das3Error(f"a result as a table needs pandas ({error}); pip install pandas") from error
    return DataFrame(list(rows)).set_index(index)
