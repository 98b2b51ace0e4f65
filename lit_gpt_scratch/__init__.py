"""Train, compare and take apart character-level language models, from a bigram to a GPT."""

from importlib import import_module
from types import ModuleType

# Old module -> folder that has its classes now. Old checkpoints and configs name old modules.
MOVED = {
    "attention": "models",
    "modern": "models",
    "optim": "training",
    "module": "training",
    "explore": "inspection",
}


def __getattr__(name: str) -> ModuleType:
    """Return the folder for an old module, so that jsonargparse can import old class paths."""
    if name in MOVED:
        return import_module(f"{__name__}.{MOVED[name]}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
