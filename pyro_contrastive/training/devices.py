"""Choose the device to train on, or to load a model to."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

import torch

from pyro_contrastive._tools.arguments import Whole, check_arguments

if TYPE_CHECKING:
    from lightning_fabric import Fabric


def one_device(accelerator: str, devices: int | list[int] | str) -> Fabric:
    """Return a Lightning Fabric that uses exactly one device.

    Parameters
    ----------
    accelerator
        ``"auto"`` (CUDA if available), ``"cpu"``, ``"gpu"``, ``"cuda"``, ``"mps"``.
    devices
        ``"auto"`` or 1, or a list with the index of one device, e.g. ``[1]``.

    Raises
    ------
    ValueError
        If more than one device is requested.
    """
    if devices == "auto":
        devices = 1
    n_devices = len(devices) if isinstance(devices, list) else devices
    if str(n_devices) != "1":
        msg = f"Training uses exactly one device, not devices={devices!r}."
        raise ValueError(msg)
    from lightning_fabric import Fabric  # noqa: PLC0415  # slow, and only training needs it

    return Fabric(accelerator=accelerator, devices=devices)


def fabric_for(accelerator: str, devices: int | list[int] | str, num_nodes: int) -> Fabric:
    """Return a Lightning Fabric for one device or several, with all processes connected.

    Parameters
    ----------
    accelerator, devices, num_nodes
        See :meth:`ContrastiveVI.train`.

    Raises
    ------
    ValueError
        If there is no such number of devices.
    ProcessesError
        If the other processes cannot be started or do not come.
    """
    if devices == "auto" and torch.distributed.is_torchelastic_launched():  # by torchrun
        devices = int(os.environ["LOCAL_WORLD_SIZE"])
        num_nodes = int(os.environ["WORLD_SIZE"]) // devices
    if devices == "auto":
        devices = 1
    n_devices = len(devices) if isinstance(devices, list) else devices
    if str(n_devices) == "1" and num_nodes == 1:
        return one_device(accelerator, devices)
    if not re.fullmatch(r"-1|[1-9]\d*", str(n_devices)):
        msg = (
            "devices must be 'auto', a number of devices, -1 for all, or a list of indices, not "
            f"{devices!r}."
        )
        raise ValueError(msg)
    from pyro_contrastive.training.launch import connected  # noqa: PLC0415  # as above

    return connected(accelerator, devices, num_nodes)


def torch_device(accelerator: str, device: int | str) -> torch.device:
    """Return the device to load a model to.

    Parameters
    ----------
    accelerator
        ``"auto"`` (CUDA if available), ``"cpu"``, ``"gpu"`` or ``"cuda"``.
    device
        Index of the device; ``"auto"``: the first.

    Raises
    ------
    ValueError
        If the accelerator is not available, or `device` is neither ``"auto"`` nor an index.
    """
    if device != "auto":
        check_arguments({"device": device}, device=Whole(0))
    has_cuda = torch.cuda.is_available()
    if accelerator == "cpu" or (accelerator == "auto" and not has_cuda):
        return torch.device("cpu")
    if accelerator not in {"auto", "gpu", "cuda"} or not has_cuda:
        msg = f"accelerator={accelerator!r} is not available; use 'auto' or 'cpu'."
        raise ValueError(msg)
    return torch.device("cuda", 0 if device == "auto" else int(device))
