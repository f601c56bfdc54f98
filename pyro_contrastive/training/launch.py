"""Start the processes that train together, and connect them."""

from __future__ import annotations

import sys
from pathlib import Path

from lightning_fabric import Fabric
from lightning_fabric.strategies.ddp import DDPStrategy
from torch import nn

import __main__
from pyro_contrastive.training import processes
from pyro_contrastive.training.processes import ProcessesError


class Together(DDPStrategy):
    """Starts and connects processes like Fabric's strategy "ddp", and leaves modules as they are.

    That one would wrap a module in ``DistributedDataParallel``.
    """

    def setup_module(self, module: nn.Module) -> nn.Module:  # type: ignore[override]  # not wrapped
        """Return the module unchanged."""
        return module


def connected(accelerator: str, devices: int | list[int] | str, num_nodes: int) -> Fabric:
    """Return a Lightning Fabric whose processes have been started and are connected.

    Processes that ``torchrun`` or a cluster's scheduler has started are used as they are. Otherwise
    this process runs its own script once more for every further device.

    Raises
    ------
    ValueError
        If there is no script to run, as in a notebook; or if the number of devices is not that of
        the processes which ``torchrun`` has started.
    ProcessesError
        If the others do not come in time.
    """
    if hasattr(sys, "ps1"):
        raise _no_script(devices)
    together = Together(timeout=processes.TIMEOUT)
    fabric = Fabric(
        accelerator=accelerator, devices=devices, num_nodes=num_nodes, strategy=together
    )
    cluster = together.cluster_environment
    has_script = Path(sys.argv[0]).is_file() or __main__.__spec__ is not None
    if cluster is not None and not cluster.creates_processes_externally and not has_script:
        raise _no_script(devices)
    try:
        fabric.launch()
    except RuntimeError as error:  # torch's own errors are of this class
        msg = (
            f"The {together.num_processes * num_nodes} processes of this training could not "
            f"connect within {processes.TIMEOUT.total_seconds():g} seconds: {error}"
        )
        raise ProcessesError(msg) from error
    return fabric


def _no_script(devices: int | list[int] | str) -> ValueError:
    return ValueError(
        f"devices={devices!r} runs this script once more for every further device, and there is "
        "none: this is a notebook or an interactive session. Write a script, and run it by "
        "`python script.py` or `torchrun --nproc-per-node=... script.py`; or use devices=1."
    )
