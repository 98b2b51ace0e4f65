"""The Lightning module: one step for all stages, metrics, optimizer, predictions."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import MeanMetric

from lit_gpt_scratch.data.datamodule import Batch
from lit_gpt_scratch.data.tokenizer import CharTokenizer
from lit_gpt_scratch.errors import InputError
from lit_gpt_scratch.generation.sampling import SamplingSettings, stream
from lit_gpt_scratch.models.gpt import NetFactory
from lit_gpt_scratch.models.modern import ModernGPT
from lit_gpt_scratch.training.optim import (
    Muon,
    OptimizerFactory,
    ScheduleFactory,
    WarmupStableDecay,
    parameter_groups,
)

DIVERGED = "lower --model.optimizer.lr, or use --trainer.precision 32-true."


class Prompts(NamedTuple):
    """What `predict` continues: ids (B, T) of one length, and the number of each text."""

    ids: Tensor
    indices: list[int]


class LitCharLM(pl.LightningModule):
    """A character-level language model of any rung.

    Args:
        net: The network, from the alphabet's size and the context.
        optimizer: Over the groups matrices, embeddings and vectors.
        schedule: Of the learning rate, stepped every optimizer step; null: constant.
        compile: Compile the network (torch.compile); worth its start-up time in long runs.
        alphabet: The characters; filled in from the data.
        context: Characters that the network sees at once; filled in from the data.
    """

    def __init__(
        self,
        net: NetFactory = ModernGPT,
        optimizer: OptimizerFactory = Muon,
        schedule: ScheduleFactory | None = WarmupStableDecay,
        compile: bool = False,
        alphabet: str = "",
        context: int = 256,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)  # the whole config is logged instead
        self.tokenizer = CharTokenizer(alphabet)
        self.context = context
        self.net = net(alphabet_size=len(alphabet), context=context)
        self.sampling, self.stop = SamplingSettings(), ""  # of `predict`
        self.watch: Callable[[int, str], None] | None = None
        self.make_optimizer = optimizer
        self.make_schedule = schedule
        self.compiles = compile
        # Made anew when training starts; made here so that a wrong value is refused before that.
        try:
            trial = optimizer(params=parameter_groups(self.net))
            if schedule is not None:
                schedule(optimizer=trial, steps=1)
        except (TypeError, ValueError) as error:
            raise InputError(f"optimizer or schedule: {error}") from error
        self.losses = {split: MeanMetric() for split in ("val", "train slice", "test")}
        self._unlogged: list[Tensor] = []  # training losses: a metric's update takes its time
        self._metrics = torch.nn.ModuleList(self.losses.values())  # so that they move to the device

    @property
    def default_prompt(self) -> str:
        """What an empty prompt stands for: a new line, where the alphabet has one."""
        return "\n" if "\n" in self.tokenizer.alphabet else self.tokenizer.alphabet[0]

    def setup(self, stage: str) -> None:
        if stage == "fit" and self.compiles:
            # Blocks alone, since those of one shape share what is compiled once; and in place,
            # since a compiled copy would rename the checkpoint's keys.
            nets = self.net.modules()
            blocks = [block for net in nets for block in getattr(net, "blocks", ())]
            for part in blocks or [self.net]:
                part.compile()

    def forward(self, ids: Tensor) -> Tensor:
        """Logits (B, T, V) of ids (B, T)."""
        return self.net(ids)

    def step(self, batch: Batch) -> Tensor:
        """Losses (B, T) in nats; their mean is remembered under the batch's split."""
        logits = self(batch.inputs).flatten(0, 1).float()
        losses = F.cross_entropy(logits, batch.targets.flatten(), reduction="none")
        if batch.split == "train":
            self._unlogged.append(losses.detach().mean())
        else:
            self.losses[batch.split].update(losses.mean(), weight=losses.numel())
        return losses.view_as(batch.targets)

    def on_train_start(self) -> None:
        """Let this run's optimizer and schedule rule where a resumed state brought its own."""
        groups = self.trainer.optimizers[0].param_groups
        fresh = self.make_optimizer(params=parameter_groups(self.net)).param_groups
        for group, wanted in zip(groups, fresh, strict=True):
            peak = group.get("initial_lr", group["lr"])
            if wanted["lr"] != peak:  # the schedule's place is kept
                group["lr"] = wanted["lr"] * (group["lr"] / peak if peak else 1.0)
            group.update({k: v for k, v in wanted.items() if k not in ("params", "lr")})
            group["initial_lr"] = wanted["lr"]
            if self.make_schedule is None:
                group["lr"] = wanted["lr"]
        for config in self.trainer.lr_scheduler_configs:
            scheduler: Any = config.scheduler
            scheduler.base_lrs = [group["initial_lr"] for group in groups]
            # A longer run is elsewhere in its schedule at this step than a shorter one was.
            for group, factor in zip(groups, getattr(scheduler, "lr_lambdas", ()), strict=False):
                group["lr"] = group["initial_lr"] * factor(scheduler.last_epoch)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        self._seed_dropout(batch.seed)
        return self.step(batch).mean()

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        return {"losses": self.step(batch)}  # for callbacks that look closer

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self.step(batch)

    def _seed_dropout(self, seed: int) -> None:
        """Dropout is a function of the batch and the rank: nothing to save, nothing to restore."""
        seed = (seed + self.global_rank) % (1 << 63)
        if self.device.type == "cuda":
            torch.cuda.default_generators[self.device.index or 0].manual_seed(seed)
        elif self.device.type == "mps":
            torch.mps.manual_seed(seed)
        else:  # a hundred times quicker than torch.manual_seed, which seeds every device
            torch.default_generator.manual_seed(seed)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        # Before clipping, and only where it is logged: the norm of all gradients is not free.
        if self.logs_after(self.global_step + 1):
            grads = [p.grad for p in self.parameters() if p.grad is not None]
            self.log("grad_norm", torch.nn.utils.get_total_norm(grads))
            self.log("lr", optimizer.param_groups[0]["lr"])  # later, it is the next step's

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        stepped = (batch_idx + 1) % self.trainer.accumulate_grad_batches == 0
        if stepped and self.logs_after(self.global_step):
            self.log("train/loss", self._unlogged_losses().mean(), prog_bar=True)
            self._unlogged.clear()
            self.log("step", float(self.global_step))
        if self.global_step >= self.trainer.max_steps:
            self.trainer.should_stop = True  # Lightning validates before it stops

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """With what has not been logged yet; never after the loss has ceased to be a number.

        Nor after a weight has: the step that does it still begins with a loss that is one.
        """
        checkpoint["unlogged"] = self._unlogged_losses().cpu()
        if not all(weight.isfinite().all() for weight in checkpoint["state_dict"].values()):
            raise InputError(
                f"not all weights are finite numbers after step {self.global_step}: {DIVERGED}"
            )

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """As many processes as before go on with what each had, others with what all had."""
        losses = checkpoint.get("unlogged")
        if isinstance(losses, Tensor) and losses.is_floating_point() and losses.dim() == 2:
            same = len(losses) == self.trainer.world_size
            self._unlogged = [*(losses[self.global_rank] if same else losses.mean(0))]

    def _unlogged_losses(self) -> Tensor:
        """Of the batches since the last row, in all P processes, (P, N).

        Raises:
            InputError: One of them is infinite or not a number; in all processes alike.
        """
        if not self._unlogged:
            return torch.empty(1, 0)
        own = torch.stack([loss.to(self.device) for loss in self._unlogged])
        losses: Any = self.all_gather(own)
        losses = losses.view(-1, len(own))
        if not losses.isfinite().all():
            first = int((~losses.isfinite()).any(0).nonzero()[0])
            worst, ago = float(losses[:, first].max()), len(own) - first
            raise InputError(
                f"the loss is {worst}, {ago} batches before step {self.global_step + 1}: {DIVERGED}"
            )
        return losses

    def logs_after(self, step: int) -> bool:
        """Whether training metrics are logged after that many steps: sparsely, and at the end."""
        trainer: Any = self.trainer
        return bool(step % trainer.log_every_n_steps == 0 or step >= trainer.max_steps)

    def on_validation_epoch_end(self) -> None:
        loss = self._log_split("val")
        gap = loss - self._take("train slice")
        if not gap.isnan():  # a limit_val_batches may leave the slice out
            self.log("val/gap", gap)
        if self.trainer.state.fn == "fit":
            if not loss.isfinite():  # before a sample is drawn from it, or a checkpoint is made
                raise InputError(
                    f"the validation loss is {float(loss)} after step {self.global_step}: "
                    f"{DIVERGED}"
                )
            # Lightning's own x-axis counts from 0; this one is the number of steps taken.
            self.log("step", float(self.global_step))

    def on_test_epoch_end(self) -> None:
        self._log_split("test")

    def _take(self, split: str) -> Tensor:
        """The mean loss since the last time, over all processes."""
        loss = self.losses[split].compute()
        self.losses[split].reset()
        return loss

    def _log_split(self, split: str) -> Tensor:
        loss = self._take(split)
        self.log(f"{split}/loss", loss, prog_bar=True)
        self.log(f"{split}/bpc", loss / math.log(2))
        self.log(f"{split}/perplexity", loss.exp())
        return loss

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer = self.make_optimizer(params=parameter_groups(self.net))
        if self.make_schedule is None:
            return optimizer
        schedule = self.make_schedule(optimizer=optimizer, steps=self.trainer.max_steps)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }

    def predict_step(self, batch: Prompts, batch_idx: int) -> list[str]:
        """The texts, prompts included."""
        return self.generate(batch.ids, self.sampling, batch.indices, self.stop, self.watch)

    def generate(
        self,
        prompt: Tensor,
        settings: SamplingSettings,
        indices: Sequence[int] | None = None,
        stop: str = "",
        watch: Callable[[int, str], None] | None = None,
    ) -> list[str]:
        """Texts that continue prompts, without dropout.

        Args:
            prompt: ids (B, T).
            settings: How to draw.
            indices: The number of each text, for its draws; the default counts from 0.
            stop: Where a text draws this, it ends before it.
            watch: Called with the first text's number and each piece of it, as it is made.
        """
        indices = range(len(prompt)) if indices is None else indices
        stop_ids = self.tokenizer.encode(stop).to(prompt.device) if stop else None
        was_training = self.net.training
        self.net.eval()
        added, made = [], ""
        if watch:
            watch(indices[0], self.tokenizer.decode(prompt[0].cpu()))
        # A compiled network would be compiled anew for each length of the cache.
        with torch.compiler.set_stance("force_eager"):
            for new in stream(self.net, prompt, self.context, settings, indices, stop_ids):
                added.append(new)
                if watch:
                    made += self.tokenizer.decode(new[:1].cpu())
                    if stop and made.endswith(stop):
                        watch = None
                    elif len(made) > len(stop):  # what may yet become the stop is held back
                        watch(indices[0], made[-len(stop) - 1])
        self.net.train(was_training)
        ids = torch.cat([prompt, torch.stack(added, dim=1)], dim=1)
        texts = [self.tokenizer.decode(row) for row in ids.cpu()]
        ends = [text.find(stop, prompt.size(1)) if stop else -1 for text in texts]
        return [text if end < 0 else text[:end] for text, end in zip(texts, ends, strict=True)]
