"""Numbers made with the published implementations (tests/golden), as dicts of tensors."""
import os
from pathlib import Path
import pytest
from safetensors.torch import load_file
from torch import Tensor

FOLDER = Path(__file__).parent/'golden'
MORE = os.environ.get('CONSISTENCY_NB_GOLDEN')   # a folder with the files that are too large to be kept here

def golden(name: str) -> dict[str, Tensor]:
    "Every tensor of one file; a test that needs a file which is not here is skipped."
    for folder in (FOLDER, *([Path(MORE)] if MORE else [])):
        if (path := folder/f'{name}.safetensors').is_file(): return load_file(path)
    pytest.skip(f'{name}.safetensors is not kept in the repository: name its folder in CONSISTENCY_NB_GOLDEN')

def weights(tensors: dict[str, Tensor], prefix: str = 'weights.') -> dict[str, Tensor]:
    "The entries below `prefix`, in float32, without it."
    return {n[len(prefix):]: v.float() for n, v in tensors.items() if n.startswith(prefix)}
