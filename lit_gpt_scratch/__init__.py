"""Train, compare and take apart character-level language models, from a bigram to a GPT."""

from importlib import import_module
from types import ModuleType

# Where the classes of each former module are now: old checkpoints and configs name them there.
MOVED = {
    "attention": "models",
    "modern": "models",
    "optim": "training",
    "module": "training",
    "explore": "inspection",
}


def __getattr__(name: str) -> ModuleType:
    """The room that took over a former module. Jsonargparse resolves old class paths by it."""
    if name in MOVED:
        return import_module(f"{__name__}.{MOVED[name]}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
