"""TRL's SFTTrainer on a LoRA model: rows in a given order, batches in parts, soft labels."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Sampler
from trl.trainer.sft_trainer import SFTTrainer

from nacd.data import Batch, epoch_order
from nacd.data.soft_labels import SoftLabels
from nacd.model.lora import LoraModel


class Order(Sampler[int]):
    """The rows in the order of `epoch_order`, epoch after epoch."""

    def __init__(self, rows: int, batch_size: int, seed: int | None):
        self.rows, self.batch_size, self.seed, self.epoch = rows, batch_size, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Called by the trainer before every epoch."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        """An epoch's rows."""
        for batch in epoch_order(self.rows, self.batch_size, self.seed, self.epoch):
            yield from batch

    def __len__(self) -> int:
        """Rows of an epoch."""
        return self.rows


class Trainer(SFTTrainer):
    """SFTTrainer that visits the rows in a given order, and takes a batch in parts."""

    loss_is_scaled_for_ga = True  # by the whole batch's label tokens
    _part: Batch
    """The rows that pass through the model now."""
    _whole: Tensor
    """Label tokens of the whole batch, ()."""

    def __init__(
        self,
        *,
        lora: LoraModel,
        order: Order,
        soft: SoftLabels | None,
        weight: float,
        **options: Any,
    ):
        self._lora, self._order, self._soft, self._weight = lora, order, soft, weight
        super().__init__(**options)

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        return self._order

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        """As everywhere: a 16-bit model adds in float32."""
        if self._soft is None:
            with self._lora.products():
                return super().compute_loss(*args, **kwargs)
        return self._lora.token_nll(self._part, None).sum() / self._whole

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """One optimiser step's loss, its gradient accumulated over the parts of the batch."""
        ids, labels = inputs["input_ids"], inputs["labels"]
        batch = Batch(ids, inputs["attention_mask"], labels != -100, torch.full_like(ids, -1))
        if self._soft is not None:
            batch = self._soft.attach(batch, self._weight)
        whole = self._whole = batch.response[:, 1:].sum().to(self._lora.device)
        one = super().training_step

        def run(parts: list[Batch]) -> Tensor:
            model.zero_grad()  # of a try for which memory did not suffice
            self.current_gradient_accumulation_steps = len(parts)
            losses = []
            for part in parts:
                self._part = part
                laid, told = self._lora.lay_out(part)
                own = laid.ids.where(laid.response, -100)
                losses.append(one(model, {"input_ids": laid.ids, "labels": own, **told}, whole))
            return torch.stack(losses).sum()

        return self._lora.in_parts(batch, run)
