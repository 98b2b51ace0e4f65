"""Train, compare and take apart character-level language models, from a bigram to a GPT.

In a notebook: `lit_gpt_scratch.fit`, `compare`, `load` and `pick` (see cli/notebook.py).
"""

from importlib import import_module
from typing import Any

NOTEBOOK = ("fit", "compare", "load", "pick")

# Old module -> folder that has its classes now. Old checkpoints and configs name old modules.
MOVED = {
    "attention": "models",
    "modern": "models",
    "optim": "training",
    "module": "training",
    "explore": "inspection",
}


def __getattr__(name: str) -> Any:
    """Import a function for notebooks on first use, or the folder that replaces an old module.

    So `import lit_gpt_scratch` is fast, and jsonargparse can import old class paths.
    """
    if name in NOTEBOOK:
        return getattr(import_module(f"{__name__}.cli.notebook"), name)
    if name in MOVED:
        return import_module(f"{__name__}.{MOVED[name]}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
