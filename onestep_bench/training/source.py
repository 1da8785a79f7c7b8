"""Training data on a device, served by (seed, step) alone."""

from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property

import torch
from torch import Tensor

from onestep_bench.data.pixels import to_unit
from onestep_bench.methods import Batch
from onestep_bench.seeds import Draw, generator
from onestep_bench.training.augment import Augment, drawn


class Source:
    """Training data on a device: uint8 images, or float pairs, served by (seed, step) alone.

    images: (n, c, h, w) uint8, or float32 in [-1, 1]; labels (n,) or None; noise: the images' pairs, or None.
    What would fill much of a GPU's memory stays where it is (a data set mapped from a file, on the disk), and a thread
    brings the rows of the next batch over while this one is trained on.
    """

    def __init__(self, images: Tensor, labels: Tensor | None, noise: Tensor | None, device: torch.device | str):
        self.device = torch.device(device)
        tensors = (images, labels, noise)
        resident = _fits(self.device, [tensor.nbytes for tensor in tensors if tensor is not None])
        place = self.device if resident else torch.device("cpu")
        self.images, self.labels, self.noise = (None if tensor is None else tensor.to(place) for tensor in tensors)
        self._epoch: tuple[tuple[int, int], Tensor] | None = None
        self._thread = None if resident else ThreadPoolExecutor(1)
        self._coming: tuple[tuple[int, int, int], Future] | None = None
        self._last = 0

    def _order(self, seed: int, epoch: int) -> Tensor:
        if self._epoch is None or self._epoch[0] != (seed, epoch):
            order = torch.randperm(len(self.images), generator=generator(seed, "epoch", epoch))
            self._epoch = (seed, epoch), order.to(self.images.device)
        return self._epoch[1]

    def _indices(self, seed: int, first: int, count: int) -> Tensor:
        """Positions first .. first+count of the endless sequence of shuffled epochs."""
        pieces = []
        while count:
            epoch, place = divmod(first, len(self.images))
            pieces.append(self._order(seed, epoch)[place : place + count])
            first, count = first + len(pieces[-1]), count - len(pieces[-1])
        return torch.cat(pieces)

    def _rows(self, seed: int, first: int, count: int) -> list[Tensor | None]:
        """Images, labels and noise at positions first .. first+count, on the device."""
        index = self._indices(seed, first, count)
        rows = [None if tensor is None else tensor[index] for tensor in (self.images, self.labels, self.noise)]
        if self._thread is None or self.device.type == "cpu":
            return rows
        return [None if tensor is None else tensor.pin_memory().to(self.device, non_blocking=True) for tensor in rows]

    def _rows_ahead(self, seed: int, first: int, count: int) -> list[Tensor | None]:
        """As `_rows`; those as far ahead as these are from the last are then under way."""
        wanted, ahead = (seed, first, count), (seed, 2 * first - self._last, count)
        if self._coming is None or self._coming[0] != wanted:
            self._coming = wanted, self._thread.submit(self._rows, *wanted)
            ahead = (seed, first + count, count)
        rows = self._coming[1].result()
        self._coming, self._last = (ahead, self._thread.submit(self._rows, *ahead)), first
        return rows

    @cached_property
    def _augment(self) -> Augment:
        return Augment(*self.images.shape[2:], self.device)

    def batch(self, draw: Draw, hflip: bool, augment: float = 0.0) -> Batch:
        """The rows of `draw`'s step. Images (and noise) float32 in [-1, 1]; augment: probability, see `augment`."""
        first = draw.step * draw.batch_size + draw.rows.start
        rows = self._rows_ahead if self._thread else self._rows
        images, labels, noise = rows(draw.seed, first, draw.rows.stop - draw.rows.start)
        images = to_unit(images) if images.dtype == torch.uint8 else images
        if hflip:
            mirrored = (draw.uniform("hflip") < 0.5).reshape(-1, 1, 1, 1)
            images = torch.where(mirrored, images.flip(-1), images)
            noise = None if noise is None else torch.where(mirrored, noise.flip(-1), noise)
        if not augment:
            return Batch(images, labels, noise)
        warp = drawn(draw, augment)
        return Batch(self._augment(images, warp), labels, noise, warp.labels())


def _fits(device: torch.device, sizes: Iterable[int]) -> bool:
    """Whether tensors of so many bytes may live on the device: on a GPU, in a quarter of what is free."""
    return device.type != "cuda" or sum(sizes) < torch.cuda.mem_get_info(device)[0] / 4
