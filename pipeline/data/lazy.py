"""A sequence whose elements are made when they are asked for."""

from collections.abc import Callable, Sequence
from typing import Any

from pipeline.data.catalog import Sample


class LazySamples(Sequence[Sample]):
    """`make(0)`, `make(1)`, ..., `make(num_samples - 1)`; nothing is kept."""

    def __init__(self, num_samples: int, make: Callable[[int], Sample]) -> None:
        self._num_samples = num_samples
        self._make = make

    def __len__(self) -> int:
        return self._num_samples

    def __getitem__(self, index: Any) -> Any:
        """One sample by its index, or a list of them by a slice."""
        if isinstance(index, slice):
            return [self._make(i) for i in range(*index.indices(self._num_samples))]
        if not 0 <= index < self._num_samples:
            raise IndexError(index)
        return self._make(index)
