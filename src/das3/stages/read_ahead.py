"""Images of a pass in batches, the next ones decoded in threads while one is worked on."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from das3.data.images import Images
from das3.data.pixels import Masked
from das3.distributed import spare_cores
from das3.threads import BYTES_AHEAD

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = ["read_ahead"]

Read = tuple[Tensor, Sequence[NDArray[np.bool_] | None]]
"""B×H×W×K uint8 or float32 of a batch, and H×W of each image where it has data; None where it has everywhere."""


def read_ahead(images: Images, groups: Sequence[Sequence[int]], fabric: Fabric) -> Iterator[Read]:
    """The images of group after group.

    Args:
        images: all of one size within a group. A user's dataset is read in this thread alone.
        groups: their indices.
        fabric: tells the device, which they are pinned for if it is a GPU, and how many cores there are.
    """
    pinned = fabric.device.type == "cuda"  # only then a copy to the device need not be waited for
    if not images.is_thread_safe:
        yield from (_stacked(map(images.masked, group), pinned) for group in groups)
        return
    threads = max(1, spare_cores(fabric.device))
    most, coming = _images_ahead(images, threads), iter(groups)
    waiting: deque[tuple[int, Future[Read]]] = deque()
    pool = ThreadPoolExecutor(threads)
    try:
        while True:
            while len(waiting) < 2 or sum(count for count, _ in waiting) < most:
                group = next(coming, None)
                if group is None:
                    break
                decoded = [pool.submit(images.masked, i) for i in group]
                # Threads begin in this order: when this one does, those images are decoded or are being so.
                waiting.append((len(group), pool.submit(_stacked, map(Future.result, decoded), pinned)))
            if not waiting:
                return
            yield waiting.popleft()[1].result()
    finally:
        pool.shutdown(cancel_futures=True)


def _images_ahead(images: Images, threads: int) -> int:
    """How many images may wait decoded, unless two batches are more: enough for the threads, and few large ones."""
    largest = max((height * width for height, width in images.sizes()), default=1) * images.pixel_bytes
    return int(min(2 * threads, BYTES_AHEAD // max(1, largest)))


def _stacked(images: Iterable[Masked], pinned: bool) -> Read:
    """Images as one B×H×W×K, and their masks."""
    arrays, masks = zip(*images, strict=True)
    if not pinned:
        return torch.from_numpy(np.stack(arrays)), masks
    batch = torch.empty((len(arrays), *arrays[0].shape), dtype=torch.from_numpy(arrays[0]).dtype, pin_memory=True)
    for place, array in zip(batch.numpy(), arrays, strict=True):
        place[...] = array  # unlike np.stack, other threads go on meanwhile
    return batch, masks
