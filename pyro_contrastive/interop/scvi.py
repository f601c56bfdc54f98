"""Rename the weights of scvi-tools' ContrastiveVAE to the names of this library."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from pyro_contrastive._tools.invalid_file import InvalidFileError

_ENCODERS = {"z_encoder": "z_encoder", "s_encoder": "s_encoder", "l_encoder": "library_encoder"}
_BLOCK = re.compile(r"fc_layers\.Layer (\d+)\.(\d)\.(.+)")
_BLOCK_PARTS = {"0": "linear", "1": "norm"}
_HEADS = {"mean_encoder": "mean", "var_encoder": "log_variance"}
_DECODER_HEADS = {
    "px_scale_decoder.0": "likelihood.layers.scale",
    "px_dropout_decoder": "likelihood.layers.dropout",
}
_WHOLE = {
    "px_r": "model.likelihood.log_inverse_dispersion",
    "library_log_means": "model.library_prior.log_means",
    "library_log_vars": "model.library_prior.log_variances",
}
_UNUSED = "decoder.px_r_decoder."
"""scvi-tools makes this head but never evaluates it: its dispersion is one number per gene."""


def rename_scvi_weights(state: Mapping[str, Tensor], *, latent_library: bool) -> dict[str, Tensor]:
    """Rename the state dict of scvi-tools' ``ContrastiveVAE`` to that of our ``ContrastiveVAE``.

    Parameters
    ----------
    state
        ``scvi_vae.state_dict()``.
    latent_library
        Whether the library size is latent. If it is observed, scvi-tools still has a library
        encoder, which it never uses; it is left out.

    Returns
    -------
    A state dict for :meth:`ContrastiveVAE.load_state_dict`, without the constants of the standard
    normal priors of z and s.

    Raises
    ------
    InvalidFileError
        If a name is not one of scvi-tools' contrastiveVI.
    """
    renamed = {}
    for name, value in state.items():
        if name.startswith(_UNUSED) or (name.startswith("l_encoder.") and not latent_library):
            continue
        new = _rename(name)
        renamed[new] = value.reshape(-1) if "library_prior" in new else value
    return renamed


def _rename(name: str) -> str:
    if name in _WHOLE:
        return _WHOLE[name]
    network, _, rest = name.partition(".")
    owner = f"guide.{_ENCODERS[network]}" if network in _ENCODERS else "model.decoder"
    for head, ours in (_HEADS if network in _ENCODERS else _DECODER_HEADS).items():
        if rest.startswith(f"{head}."):
            parameter = rest.removeprefix(f"{head}.")
            return f"{owner}.{ours}.{parameter}".replace("decoder.likelihood", "likelihood")
    body = ".body" if network in _ENCODERS else ""
    return f"{owner}{body}.{_rename_block(rest, name)}"


def _rename_block(rest: str, name: str) -> str:
    match = _BLOCK.search(rest)
    if match is None or match[2] not in _BLOCK_PARTS:
        msg = f"{name!r} is not a weight of scvi-tools' ContrastiveVAE."
        raise InvalidFileError(msg)
    return f"blocks.{match[1]}.{_BLOCK_PARTS[match[2]]}.{match[3]}"
