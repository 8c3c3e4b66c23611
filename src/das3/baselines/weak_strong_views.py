"""Two views of one sample: weakly augmented for a teacher, with changed colours and blur for the student."""

from __future__ import annotations

from dataclasses import replace

from das3.data.samples import Sample, Samples

__all__ = ["WeakStrongViews"]


class WeakStrongViews(Samples):
    """Samples as of `plain`, with "weak", the same cut without colour changes and blur, beside "image"."""

    def __init__(self, plain: Samples) -> None:
        super().__init__(plain.images, plain.view, seed=plain.seed, maps=plain.maps, order=plain.order.tolist())
        self.weak = replace(plain.view, color=0.0, blur=0.0)

    def __getitem__(self, n: int) -> Sample:
        """Sample number n ≥ 0."""
        # A view draws its cut before its colours, so from equal randomness both are cut alike.
        weak = self.weak(self.images[self.pick(n)], {}, self.rng(n))["image"]
        return {**super().__getitem__(n), "weak": weak}
