"""The Lightning module for every network: its loss, metrics, optimizer and predictions.

Lightning's Trainer calls these methods. For each batch of training: `training_step`, then backward,
clipping, optimizer and schedule. For each validation: `validation_step` for each batch, then
`on_validation_epoch_end`. `training/callbacks.py` logs `train/loss`, and seeds dropout.
"""

from typing import Any, Literal

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.nn import functional as F

from lit_gpt_scratch.data.tokenizer import CharTokenizer
from lit_gpt_scratch.data.windows import Batch
from lit_gpt_scratch.generation import Prompts, SamplingSettings, generate_text
from lit_gpt_scratch.models import ModernGPT, NetFactory
from lit_gpt_scratch.training.callbacks import fit_callbacks
from lit_gpt_scratch.training.distillation import Teacher
from lit_gpt_scratch.training.hyperparameters import plain_hyperparameters
from lit_gpt_scratch.training.mean_losses import MeanLosses
from lit_gpt_scratch.training.muon import Muon
from lit_gpt_scratch.training.optim import (
    OptimizerFactory,
    ScheduleFactory,
    WarmupStableDecay,
    build_optimizer,
)
from lit_gpt_scratch.training.sharding import shard


class LitCharLM(pl.LightningModule):
    """A character-level language model: a network with its loss, optimizer and text generation.

    Args:
        net: Bigram, AttentionLM, GPT, ModernGPT, Ensemble, or your class of network.
            `--model.net.help NAME` lists a class's arguments.
        optimizer: Muon, torch.optim.AdamW or your class; `--model.optimizer.help NAME`.
        schedule: Learning rate over the steps: WarmupStableDecay, WarmupCosine or your class;
            `--model.schedule.help NAME`; null: constant.
        compile: Make steps faster with torch.compile. auto: where it makes the run shorter.
        teacher: Checkpoint or run whose predictions the network learns, too (distillation).
        teacher_weight: Weight of the teacher's loss, from 0 to 1. The text's loss has the rest.
        teacher_temperature: Divides the logits in the teacher's loss.
        alphabet: All characters, sorted; in a script, give `data.alphabet`.
        context: Longest input of the network; in a script, give `data.context`.
    """

    def __init__(
        self,
        net: NetFactory = ModernGPT,
        optimizer: OptimizerFactory = Muon,
        schedule: ScheduleFactory | None = WarmupStableDecay,
        compile: bool | Literal["auto"] = "auto",
        teacher: str | None = None,
        teacher_weight: float = 1.0,
        teacher_temperature: float = 1.0,
        alphabet: str = "",
        context: int = 256,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)
        self.hparams.update(plain_hyperparameters(self.hparams))  # only text and numbers
        self.tokenizer = CharTokenizer(alphabet)
        self.context = context
        self.net = net(alphabet_size=len(alphabet), context=context)  # the argument is a factory
        self.make_optimizer, self.make_schedule = optimizer, schedule
        how = teacher_weight, teacher_temperature
        self.teacher = Teacher(teacher, *how) if teacher else None  # only fit loads its checkpoint
        build_optimizer(self.net, optimizer, schedule, steps=1)  # only to refuse wrong values now
        self.mean_losses = MeanLosses()

    def forward(self, ids: Tensor) -> Tensor:
        """Return the logits (B, T, V) of ids (B, T)."""
        return self.net(ids)

    def character_losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the loss in nats of each target (B, T), from logits (B, T, V)."""
        rows = logits.flatten(0, 1).float()  # (B * T, V); softmax needs fp32
        return F.cross_entropy(rows, targets.flatten(), reduction="none").view_as(targets)

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        logits = self(batch.inputs)
        loss = data_loss = self.character_losses(logits, batch.targets).mean()
        if self.teacher:
            loss = self.teacher.mix(data_loss, logits, batch.inputs)
        return {"loss": loss, "data_loss": data_loss.detach()}  # TrainLoss logs the second

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        losses = self.character_losses(self(batch.inputs), batch.targets)
        if batch.counted is not None:  # windows overlap, or nothing counts
            losses = losses[batch.counted]
        self.mean_losses.add(batch.split, losses)
        return {"losses": losses}  # for SymbolLossRecorder

    test_step = validation_step

    def on_validation_epoch_end(self) -> None:
        # It grows when the model overfits. The sample is spread evenly over the training text.
        gap = self.mean_losses.log(self.log, "val") - self.mean_losses.take("train sample")
        if not gap.isnan():  # limit_val_batches may leave the sample out
            self.log("val/gap", gap)

    def on_test_epoch_end(self) -> None:
        self.mean_losses.log(self.log, "test")

    def predict_step(self, batch: Prompts | Tensor, batch_idx: int) -> list[str]:
        """Continue prompts, or plain ids (B, T). Return the texts, prompts included."""
        if isinstance(batch, Tensor):
            batch = Prompts(batch)
        return generate_text(self.net, self.tokenizer, self.context, batch)

    def generate(self, prompt: Tensor, settings: SamplingSettings, **how: Any) -> list[str]:
        """Continue prompts (B, T); see `generation.Prompts` for more arguments."""
        return self.predict_step(Prompts(prompt, settings=settings, **how), 0)

    def configure_model(self) -> None:
        if self.device_mesh is not None:  # with --trainer.strategy fsdp2
            shard(self.net, self.device_mesh.device_type)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        steps = self.trainer.estimated_stepping_batches  # infinite if only time limits the fit
        return build_optimizer(self.net, self.make_optimizer, self.make_schedule, steps)

    def configure_callbacks(self) -> list[Callback]:
        return fit_callbacks(self.trainer, self.hparams["compile"], self.teacher)
