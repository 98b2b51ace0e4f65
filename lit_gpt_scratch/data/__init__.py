"""From a text to batches: corpus, tokenizer, and the Lightning data module.

Public names are imported on first use: `report` needs this package, but not Lightning or PyTorch,
which take seconds to import.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lit_gpt_scratch.data.corpus import open_corpus
    from lit_gpt_scratch.data.datamodule import CharDataModule
    from lit_gpt_scratch.data.tokenizer import CharTokenizer

__all__ = ["CharDataModule", "CharTokenizer", "open_corpus"]
_MODULES = {"CharDataModule": "datamodule", "CharTokenizer": "tokenizer", "open_corpus": "corpus"}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
