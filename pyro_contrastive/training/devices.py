"""Which device to train on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from lightning_fabric import Fabric


def one_device(accelerator: str, devices: int | list[int] | str) -> Fabric:
    """Return a Lightning Fabric on exactly one device.

    Parameters
    ----------
    accelerator
        ``"auto"`` (CUDA when there is one), ``"cpu"``, ``"gpu"``, ``"cuda"``, ``"mps"``.
    devices
        ``"auto"`` or 1, or a list with the number of one device, e.g. ``[1]``.

    Raises
    ------
    ValueError
        If more than one device is asked for.
    """
    if devices == "auto":
        devices = 1
    n_devices = len(devices) if isinstance(devices, list) else devices
    if str(n_devices) != "1":
        msg = f"Training uses one device; devices={devices!r} asks for another number."
        raise ValueError(msg)
    from lightning_fabric import Fabric  # noqa: PLC0415  # slow, and only training needs it

    return Fabric(accelerator=accelerator, devices=devices)


def torch_device(accelerator: str, device: int | str) -> torch.device:
    """Return the device a model is loaded to.

    Parameters
    ----------
    accelerator
        ``"auto"`` (CUDA when there is one), ``"cpu"``, ``"gpu"`` or ``"cuda"``.
    device
        Number of the device; ``"auto"``: the first.

    Raises
    ------
    ValueError
        If there is no such accelerator here.
    """
    has_cuda = torch.cuda.is_available()
    if accelerator == "cpu" or (accelerator == "auto" and not has_cuda):
        return torch.device("cpu")
    if accelerator not in {"auto", "gpu", "cuda"} or not has_cuda:
        msg = f"accelerator={accelerator!r} is not to be had here; 'auto' and 'cpu' are."
        raise ValueError(msg)
    return torch.device("cuda", 0 if device == "auto" else int(device))
