"""Settings of the library as a whole, modelled on ``scvi.settings``."""

from __future__ import annotations

import logging

import pyro

from pyro_contrastive._tools.threads import one_thread


class Settings:
    """Settings of every model in this session; importing the library changes none of them.

    Attributes
    ----------
    progress_bars
        Show progress bars, in training and in methods that take a few seconds; default ``True``.

    Examples
    --------
    >>> from pyro_contrastive import settings
    >>> settings.progress_bars = False
    >>> settings.seed = 0
    >>> settings.progress_bars = True
    """

    __slots__ = ("_seed", "progress_bars")  # a misspelt setting is an error

    def __init__(self) -> None:
        self.progress_bars = True
        self._seed: int | None = None

    @property
    def seed(self) -> int | None:
        """Seed of torch, NumPy and ``random``, all at once; ``None`` until it is set here."""
        return self._seed

    @seed.setter
    def seed(self, seed: int) -> None:
        with one_thread():  # or a training in another thread would draw from it
            pyro.set_rng_seed(seed)
            self._seed = seed

    @property
    def verbosity(self) -> int:
        """Level of the library's log messages, such as ``logging.INFO``."""
        return logging.getLogger("pyro_contrastive").getEffectiveLevel()

    @verbosity.setter
    def verbosity(self, level: int | str) -> None:
        logging.getLogger("pyro_contrastive").setLevel(level)


settings = Settings()
