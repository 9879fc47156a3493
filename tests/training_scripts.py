"""The commands of the folders of training/, as modules.

Other folders have a `data` and a `train` too: these are loaded by their files.
"""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

TRAINING = Path(__file__).parents[1] / "training"


def add_to_path(folder: str) -> None:
    """Let modules of a folder of training/, and what trainings share, be imported by name."""
    for path in (TRAINING, TRAINING / folder):
        if str(path) not in sys.path:
            sys.path.insert(0, str(path))


def script(folder: str, name: str) -> ModuleType:
    """A command of a folder of training/, under a name that nothing else has."""
    add_to_path(folder)
    spec = importlib.util.spec_from_file_location(
        f"{folder}_{name}", TRAINING / folder / f"{name}.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
