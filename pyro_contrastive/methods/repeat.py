"""How a model was trained, and the same training again."""

from __future__ import annotations

from typing import Any, Self

from anndata import AnnData

from pyro_contrastive.methods.refit import refitted
from pyro_contrastive.methods.training import TrainingMethods


class RepeatMethods(TrainingMethods):
    """Mixin of :class:`ContrastiveVI`: the training that it had, also after loading."""

    @property
    def training_calls(self) -> list[dict[str, Any]]:
        """Arguments of each call of :meth:`train` that led to the present weights, in order.

        They are saved with the model. In addition ``"threads"`` of torch and the type of
        ``"device"``, on which the last digits of a result depend.
        """
        return [
            {**call.arguments, "threads": call.threads, "device": call.device}
            for call in self._runs
        ]

    def repeat_training(self, adata: AnnData | None = None) -> Self:
        """Return a model trained anew: from the same initial weights, by the same calls.

        On a CPU, with the same versions of the packages (``config.json`` of a saved model lists
        them) and ``torch.set_num_threads`` as in `training_calls`, its weights are those of this
        model. A run that Ctrl-C ended is repeated in full.

        Parameters
        ----------
        adata
            The cells that the model was trained on. Default: ``model.adata``.

        Raises
        ------
        ValueError
            If the model was not trained, or an argument of :meth:`train` could not be saved, such
            as a function.
        """
        return refitted(self, self._adata(adata), None, {})
