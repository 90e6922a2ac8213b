"""What every test shares: no network, one thread each, tiny models made once a session."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

for _key, _value in {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_NUM_THREADS": "1",
}.items():
    os.environ.setdefault(_key, _value)  # before the tests import the libraries that read them

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`tiny_folder(arch)`: the folder of the session's tiny model of that architecture."""
    from tiny import tiny_model

    folders: dict[str, Path] = {}

    def folder(arch: str) -> Path:
        if arch not in folders:
            folders[arch] = tiny_model(arch, tmp_path_factory.mktemp(arch))
        return folders[arch]

    return folder
