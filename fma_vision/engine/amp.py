"""Mixed precision on the CPU."""
from contextlib import contextmanager
from typing import Any, Iterator

import torch
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS
from torch import nn


@OPTIM_WRAPPERS.register_module()
class CPUAmpOptimWrapper(OptimWrapper):
    """Autocast to bfloat16 on the CPU.

    The host's ``AmpOptimWrapper`` refuses to run without an accelerator.
    bfloat16 has float32's range, so no loss scaling is needed.

    Args:
        **kwargs: Arguments of :class:`mmengine.optim.OptimWrapper`.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Run the forward pass under autocast.

        Args:
            model (nn.Module): The model in training.
        """
        with super().optim_context(model), torch.autocast(
                'cpu', dtype=torch.bfloat16):
            yield
