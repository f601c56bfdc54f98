"""Which device to train on."""

from __future__ import annotations

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
    return Fabric(accelerator=accelerator, devices=devices)
