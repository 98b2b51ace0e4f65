"""The flags of a tiny run, and the type of the fixture `refusal`."""

from collections.abc import Callable

TINY = [
    *["--data.corpus", "sample", "--data.sample_size", "20000", "--data.context", "16"],
    *["--model.net.layers", "1", "--model.net.width", "16", "--model.net.attention.heads", "2"],
    *["--trainer.max_steps", "7", "--trainer.val_check_interval", "3"],
    *["--trainer.log_every_n_steps", "2", "--wandb.mode", "disabled"],
]
Refusal = Callable[..., str]
