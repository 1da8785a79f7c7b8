"""A training as it goes: loss, samples and score in one figure that draws itself again."""

import time
from functools import cached_property

import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn import functional

from onestep_bench import samplers, scoring
from onestep_bench.data import Dataset
from onestep_bench.data.pixels import to_uint8
from onestep_bench.denoiser import Denoiser
from onestep_bench.explore.screen import live
from onestep_bench.report.drawing import score_name
from onestep_bench.scoring import FeatureExtractor, judging
from onestep_bench.scoring.metrics import frechet_from_moments
from onestep_bench.seeds import sample_labels, sample_noise
from onestep_bench.study import Track
from onestep_bench.training.state import LogRow

_APART = 1.0  # seconds between two pictures, at least
_SHARE = 0.1  # of the time, at most, that drawing takes
_SEEN = 10  # samples of a picture
_FEWEST = 2  # samples of a distance
_REAL = 4096  # images of the data that samples are held against, at most


def watch(data: Dataset, *, sampler: str = "euler", steps: int = 1, samples: int = 256) -> Track:
    """What `study.train(..., track=watch(data))` draws under its cell: losses, samples of the average, their distance.

    data: what is trained on: its shape, and the images, some thousands at most, that a judge holds `samples` samples
    against (0 for no score). The judge is one that needs no training: that of the digits, else `random-features`.
    A picture comes once a second at most, takes a tenth of the time at most, and comes once more at the end; the
    seconds of the record are of the training alone. Where nobody looks on nothing is drawn, nor is anything of a model
    that the store has already. Raises OnestepError for an unknown sampler.
    """
    samplers.sampler(sampler)
    if not live():
        return lambda row, student: None
    return _Figure(data, sampler, steps, samples)


class _Figure:
    """The rows so far, the scores so far, and the place of the picture on the screen."""

    def __init__(self, data: Dataset, sampler: str, steps: int, samples: int):
        self.data, self.sampler, self.steps, self.samples = data, sampler, steps, samples
        self._begin()

    def _begin(self) -> None:
        self.rows: list[LogRow] = []
        self.scores: list[tuple[float, float]] = []
        self.shown, self.due, self.waits = None, 0.0, None

    def __call__(self, row: LogRow, student: Denoiser) -> None:
        self.rows.append(row)
        self.waits = student
        if time.monotonic() >= self.due:
            self._draw()

    def close(self) -> None:
        """The training has ended: draw how, and be ready for another one."""
        if self.waits:
            self._draw()
        self._begin()

    def _draw(self) -> None:
        began, student, self.waits = time.monotonic(), self.waits, None
        self._show(drawn(self.rows, self._looked_at(student), self.scores, self.judge.name))
        took = time.monotonic() - began
        self.due = began + max(_APART, took / _SHARE)

    def _looked_at(self, student: Denoiser) -> Tensor:
        count = max(self.samples, _SEEN)
        images = made(student, self.data.shape, count, self.sampler, self.steps)
        if self.samples >= _FEWEST:
            seen = judging.judged(self.judge, [to_uint8(images[: self.samples])], self.samples, kept=0)
            score = frechet_from_moments(seen.mu, seen.cov, self.real.mu, self.real.cov)
            self.scores.append((self.rows[-1].kimg, score))
        return images[:_SEEN]

    @cached_property
    def judge(self) -> FeatureExtractor:
        """Who is there at once: to train a judge in the middle of a training would hold it up for minutes."""
        fitting = scoring.panel(["auto"], self.data)[0]
        return scoring.judge("random-features" if fitting == "classifier" else fitting, self.data)

    @cached_property
    def real(self) -> judging.Judged:
        """What the judge makes of the data, of some evenly spaced images if there are many."""
        images = self.data.images[:: -(-len(self.data) // _REAL)]
        return judging.judged(self.judge, [images], len(images), kept=0)

    def _show(self, figure: Figure) -> None:
        from IPython.display import display

        if self.shown is None:
            self.shown = display(figure, display_id=True)
        else:
            self.shown.update(figure)


def made(student: Denoiser, shape: tuple[int, int, int], count: int, sampler: str, steps: int) -> Tensor:
    """Samples (count, c, h, w) of a student in training, with classes in equal parts; its mode is left as it was."""
    device, training = next(student.parameters()).device, student.training
    noise = sample_noise(0, range(count), shape).to(device)
    labels = sample_labels(0, range(count), [1] * student.num_classes)
    times = samplers.times_of(sampler, student.path, steps)
    student.eval()
    try:
        labels = None if labels is None else labels.to(device)
        return samplers.sampler(sampler)(student, noise, times, labels).cpu()
    finally:
        student.train(training)


def drawn(rows: list[LogRow], images: Tensor, scores: list[tuple[float, float]], judge: str) -> Figure:
    """Losses by network over kimg, the score beside them if there is one, and a strip of images below."""
    figure = plt.figure(figsize=(8, 3.6), layout="constrained")
    over, below = figure.subfigures(2, 1, height_ratios=[3, 1])
    axes = over.subplots(1, 2 if scores else 1, squeeze=False)[0]
    for network in sorted({name for row in rows for name in row.losses}):
        known = [(row.kimg, row.losses[network]) for row in rows if network in row.losses]
        axes[0].plot(*zip(*known, strict=True), ".-", label=network)
    axes[0].set(xlabel="images seen (thousands)", ylabel="loss")
    axes[0].legend(frameon=False)
    if scores:
        axes[1].plot(*zip(*scores, strict=True), "o-")
        axes[1].set(xlabel="images seen (thousands)", ylabel=score_name(judge), yscale="log")
    strip = torch.cat(list(functional.pad(to_uint8(images), (0, 1), value=255)), dim=-1).permute(1, 2, 0).numpy()
    axis = below.subplots()
    axis.imshow(strip.squeeze(-1) if strip.shape[-1] == 1 else strip, cmap="gray", vmin=0, vmax=255)
    axis.set_title(f"samples at {rows[-1].kimg:g} thousand images", fontsize="medium")
    axis.set_axis_off()
    plt.close(figure)
    return figure
