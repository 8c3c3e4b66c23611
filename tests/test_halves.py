"""Work on a batch, in halves where the memory does not hold it."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from das3.halves import in_halves


@given(st.integers(1, 40), st.integers(1, 40))
def test_what_is_found_in_halves_is_what_the_whole_holds_in_order(count, most):
    tried = []

    def work(part):
        tried.append(part)
        if part.stop - part.start > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return [*range(count)][part]

    assert in_halves(work, count) == [*range(count)]
    assert tried[0] == slice(0, count)
    assert len(tried) == 1 or count > most


def test_an_image_that_does_not_fit_is_an_error_and_so_is_any_other():
    def too_large(part):
        raise torch.OutOfMemoryError("CUDA out of memory")

    def wrong(part):
        raise ValueError("not of the memory")

    with pytest.raises(torch.OutOfMemoryError):
        in_halves(too_large, 5)
    with pytest.raises(ValueError, match="not of the memory"):
        in_halves(wrong, 5)
