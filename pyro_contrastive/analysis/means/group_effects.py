r"""Effects of a treatment on the samples of a group, and over samples: who is compared with whom.

The effect on a sample is the log ratio of means within strata of :mod:`.log_ratio`, and its
interval is about these cells. Over samples (donors) the effect is the mean of theirs. If two or
more hold both treated and background cells, each is compared with itself, and the interval is
Student's, of these differences. Otherwise every sample, treated or not, is compared with the
background cells of all, and the difference of the two means has the interval of Welch (Biometrika
34, 1947): what samples differ by counts on both sides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from pyro_contrastive.analysis.means.blocks import Blocks
from pyro_contrastive.analysis.means.group_effect import GroupEffect, effect_of
from pyro_contrastive.analysis.means.over_samples import TWO, over_pairs, over_two_sets
from pyro_contrastive.analysis.means.settings import MeansSettings

__all__ = ["group_effects"]

Array = NDArray[np.float64]
OWN, ALL = "its own background cells", "background cells of all samples"


def group_effects(
    blocks: Blocks, decoded: Array, samples: Sequence[int], settings: MeansSettings
) -> list[GroupEffect]:
    """Estimate the effect in every sample of a group, and over all of them.

    Parameters
    ----------
    blocks
        The cells of the group.
    decoded
        Expression of the treated cells of each block, summed over cells, with the salient latent
        and without it, ``[blocks, 2, genes]``.
    samples
        Codes of the samples that hold treated cells in any group, at least one; each gets a result.
    settings
        Settings of the test of means.

    Returns
    -------
    One per sample, then the one over all samples.
    """

    def own(sample: int) -> GroupEffect:
        return effect_of(sample, blocks.with_itself(sample), decoded, settings, OWN)

    def against_all(sample: int) -> GroupEffect:
        return effect_of(sample, blocks.with_all(sample), decoded, settings, ALL)

    def untreated(sample: int) -> GroupEffect:
        return effect_of(sample, blocks.background_with_all(sample), decoded, settings, ALL)

    paired = [effect for effect in map(own, samples) if effect.n_cells]
    each = {effect.sample: effect for effect in paired}
    for sample in samples:
        if sample not in each:
            each[sample] = _explained(against_all(sample), blocks, settings)
    found = [each[sample] for sample in samples]
    if len(paired) >= TWO:
        return [*found, over_pairs(paired, settings.interval)]
    treated = [effect for effect in map(against_all, samples) if effect.n_cells]
    if not treated:
        return [*found, replace(found[0], sample=None)]
    others = [
        effect for effect in map(untreated, np.unique(blocks.sample).tolist()) if effect.n_cells
    ]
    return [*found, over_two_sets(treated, others, settings.interval)]


def _explained(effect: GroupEffect, blocks: Blocks, settings: MeansSettings) -> GroupEffect:
    """Say why the cells of a sample could not be compared, if they could not."""
    if effect.n_cells:
        return effect
    assert effect.sample is not None
    if blocks.n_treated(effect.sample) == 0:
        reason = "no treated cells"
    elif not blocks.sums.n_cells[:, 0].any():
        reason = "no background cells"
    else:
        reason = f"no stratum with {settings.fewest_cells} treated and background cells"
    return replace(
        effect, compared_with="", not_estimated=np.full(effect.lfc.shape, reason, dtype=object)
    )
