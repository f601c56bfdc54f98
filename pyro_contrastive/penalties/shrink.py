"""A penalty that shrinks the prior means of the conditions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pyro.poutine import Trace
from torch import Tensor

from pyro_contrastive._tools.arguments import Whole, shown
from pyro_contrastive.cells import CellBatch
from pyro_contrastive.penalties.base import Penalty


class ShrinkMeans(Penalty):
    r"""Shrinks the prior means of the conditions to 0: the MAP estimate under a normal prior.

    .. math:: m_c \sim N(0, I / w), \quad
        -\log p(m) = \frac{w}{2} \sum_c \lVert m_c \rVert^2 + \mathrm{const}

    with w the weight. If all cells have the same weight, this is as if each condition had w further
    cells with s = 0. The objective is per pair of cells, that is 2 / N of that of the data set, so
    that :math:`w / N \sum_c \lVert m_c \rVert^2` is added to it, as for any global site. A
    mini-batch drawn uniformly from all cells estimates this without bias by the average over its
    cells of :math:`w \lVert m_{c(n)} \rVert^2 / N_{c(n)}`. It is never annealed, since it is not
    part of a KL divergence.

    Parameters
    ----------
    cells_per_condition
        Number of cells :math:`N_c` of each condition in the whole data set, background first.
    weight
        Precision w of the prior of the means.
    site
        Latent with the :class:`~pyro_contrastive.PerConditionNormal` prior: ``"s"`` or ``"z"``.

    Raises
    ------
    ValueError
        If the weight is negative, or `site` is neither "z" nor "s".
    """

    uses_expression = False

    def __init__(
        self, cells_per_condition: Sequence[int], weight: float = 1.0, site: str = "s"
    ) -> None:
        super().__init__(weight, annealed=False)
        if site not in {"z", "s"}:
            msg = f"ShrinkMeans: site must be 'z' or 's', not {site!r}."
            raise ValueError(msg)
        self.cells_per_condition = _numbers(cells_per_condition)
        self.site = site

    @property
    def name(self) -> str:
        """Name of the penalty with its site, so that both latents can be shrunk."""
        return f"shrinkmeans_{self.site}"

    def forward(self, model_trace: Trace, guide_trace: Trace, batch: CellBatch) -> Tensor:
        """Return the average over cells of the squared mean, divided by the condition's size."""
        means = model_trace.nodes[self.site]["fn"].mean  # [..., cells, latents]
        sizes = means.new_tensor(self.cells_per_condition).clamp(min=1.0)
        return (means.square().sum(-1) / sizes[batch.condition.long()]).mean()


def _numbers(cells_per_condition: object) -> list[int]:
    """Return numbers of cells as a list, refusing anything else."""
    given = list(cells_per_condition) if isinstance(cells_per_condition, Iterable) else []
    if not given or any(Whole(0).problem(n) is not None for n in given):
        msg = (
            "ShrinkMeans: cells_per_condition must be a list of whole numbers from 0 up, one for "
            f"each condition, background first; not {shown(cells_per_condition)}."
        )
        raise ValueError(msg)
    return [int(n) for n in given]
