"""MNIST-1D, made on the spot: no file is needed.

Greydanus & Kobak, "Scaling down deep learning with MNIST-1D", ICML 2024 (arXiv 2011.14439): forty numbers that draw one
of ten digits, stretched, shifted, scaled and sheared, in noise.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

CLASSES = 10
STEPS = 40
EXAMPLES, TRAINING = 5000, 4000
SEED = 42  # of the published set

# each digit as a pen that goes down twelve lines of a page: how far to the right it is
PEN = (
    (5, 6, 6.5, 6.75, 7, 7, 7, 7, 6.75, 6.5, 6, 5),
    (5, 3, 3, 3.4, 3.8, 4.2, 4.6, 5, 5.4, 5.8, 5, 5),
    (5, 6, 6.5, 6.5, 6, 5.25, 4.75, 4, 3.5, 3.5, 4, 5),
    (5, 6, 6.5, 6.5, 6, 5, 5, 6, 6.5, 6.5, 6, 5),
    (5, 4.4, 3.8, 3.2, 2.6, 2.6, 5, 5, 5, 5, 5, 5),
    (5, 3, 3, 3, 3, 5, 6, 6.5, 6.5, 6, 4.5, 5),
    (5, 4, 3.5, 3.25, 3, 3, 3, 3, 3.25, 3.5, 4, 5),
    (5, 7, 7, 6.6, 6.2, 5.8, 5.4, 5, 4.6, 4.2, 5, 5),
    (5, 4, 3.5, 3.5, 4, 5, 5, 4, 3.5, 3.5, 4, 5),
    (5, 4, 3.5, 3.5, 4, 5, 5, 5, 5, 4.7, 4.3, 5),
)
PADDING = 36, 60  # zeros after a digit, at least and at most
LONG = 12 + 60  # steps before the last thinning
SHIFTS = 48
SCALE = 0.4
SHEAR = 0.75
CORRELATED_NOISE, BLUR = 0.25, 2  # standard deviations: of the noise where the signal is silent, of its blurring
NOISE = 0.02


@dataclass(frozen=True)
class Digits:
    """The examples of both parts: signals ``[N, 40]``, of mean 0 and variance 1 over all, and classes ``[N]``."""

    train: tuple[Floats, Integers]
    test: tuple[Floats, Integers]


def mnist1d(seed: int = SEED) -> Digits:
    """4,000 training and 1,000 test examples; with the default seed they are the published data set.

    numpy keeps the stream of `RandomState` as it is for ever, so that the same numbers come out everywhere.
    """
    random = np.random.RandomState(seed)
    templates = _templates()
    labels = np.repeat(np.arange(CLASSES), EXAMPLES // CLASSES)
    signals = np.stack([_draw(templates[label], random) for label in labels])
    order = random.permutation(EXAMPLES)
    signals, labels = signals[order], labels[order]
    signals = (signals - signals.mean()) / signals.std()
    return Digits((signals[:TRAINING], labels[:TRAINING]), (signals[TRAINING:], labels[TRAINING:]))


def _templates() -> Floats:
    """The ten digits, ``[10, 12]``: of variance 1/36, beginning and ending at 0."""
    pen = np.array(PEN)
    pen = (pen - pen.mean(1, keepdims=True)) / pen.std(1, keepdims=True)
    whole: Floats = (pen - pen[:, :1]) / 6
    return whole


def _draw(template: Floats, random: np.random.RandomState) -> Floats:
    """One example, ``[40]``; the order of the draws is part of the data set."""
    low, high = PADDING
    zeros = low + int(random.rand() * (high - low + 1))
    signal = _stretched(np.concatenate([template + 1e-8, np.zeros(zeros)]), LONG)
    signal *= 1 + SCALE * (random.rand() - 0.5)
    signal = np.roll(signal, random.randint(SHIFTS))
    silent = signal == 0  # which no point of the digit is, thanks to the 1e-8 above
    signal = np.where(silent, _blurred(CORRELATED_NOISE * random.randn(LONG)), signal)
    signal = signal + NOISE * random.randn(LONG)
    signal -= SHEAR * (random.rand() - 0.5) * np.linspace(-0.5, 0.5, LONG)
    return _stretched(signal, STEPS)


def _stretched(signal: Floats, steps: int) -> Floats:
    """The signal at ``steps`` places spread evenly over it, by linear interpolation."""
    places = np.linspace(0, 1, steps)
    return np.interp(places, np.linspace(0, 1, len(signal)), signal)


def _blurred(signal: Floats) -> Floats:
    """Gaussian blur, cut at four standard deviations; beyond its ends the signal is mirrored."""
    reach = 4 * BLUR
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / BLUR) ** 2)
    return np.convolve(np.pad(signal, reach, mode="symmetric"), weights / weights.sum(), mode="valid")
