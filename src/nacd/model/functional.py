"""A frozen causal language model with LoRA on it, seen as a function of one flat vector theta.

Everything trainable is `theta`, shape (P,): all LoRA matrices, laid end to end in the order of
`named_parameters`. The module's own LoRA parameters are views into one buffer, so that writing
theta is one copy. Two ways lead from theta to the loss:

- `value_and_grad`: the module's own parameters and ordinary autograd; any attention kernel,
  gradient checkpointing allowed.
- `loss_at`: `torch.func.functional_call`, differentiable in theta and twice; the caller must allow
  a double backward (`twice_differentiable`).

Only positions that predict a response token pass through the vocabulary head: a hook in front of
the head drops the others, whatever the architecture does around it. No padding passes through the
model where the architecture can tell rows in one sequence apart by their positions (`packs`), and
no more than `micro_tokens` positions at once: loss and gradient are summed over a batch's parts.
"""

from __future__ import annotations

import contextlib
import math
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from nacd.config import ModelConfig
from nacd.data.batches import Batch
from nacd.errors import UserError
from nacd.model import adapters
from nacd.model.inject import add_lora, untrained_experts
from nacd.model.mixed import SHORT, keep_sums, short_products
from nacd.model.parts import MICRO_TOKENS, MICRO_TOKENS_DEVICE, in_parts
from nacd.model.pretrained import check_vocabulary
from nacd.model.probe import require_causal, resolve_device, tells_rows_apart
from nacd.model.sharding import shard
from nacd.model.soft_loss import soft_nll

T = TypeVar("T")
DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


class LoraModel:
    """A causal LM with LoRA; see the module's docstring.

    Attributes:
        hf: the transformers model with LoRA layers injected.
        tokenizer: its tokenizer.
        config: the configuration it was made from.
        size: P, the length of theta.
        width: d, the width of `inputs_embeds`.
        vocabulary: ids that have an embedding and a logit, 0 to vocabulary - 1.
        notes: lines for the user on what was loaded and what is trained.
        packs: whether rows pass through the model in one sequence, without padding.
        micro: most positions that pass through the model at once.
        short: the 16-bit format that matrices are multiplied in, or None; see `nacd.model.mixed`.
        on_less: called with `micro` whenever memory has run out and it was lowered.
    """

    def __init__(
        self,
        hf: Any,
        tokenizer: Any,
        config: ModelConfig,
        *,
        adapter: Path | None = None,
        notes: Sequence[str] = (),
    ):
        self.config = config
        self.tokenizer = tokenizer
        self.notes = list(notes)
        self.device = resolve_device(config.device)
        if self.device.type == "mps" and config.dtype == "float64":
            raise UserError("--dtype float64: MPS has no float64; use --device cpu.")
        if config.micro_tokens < 0:
            raise UserError(f"--micro-tokens {config.micro_tokens}: at least 1, or 0 for auto.")
        self.vocabulary = check_vocabulary(tokenizer, hf, config.model)
        if config.shard:
            shard(hf, self.device, config.model)
        hf.to(self.device)
        require_causal(hf, config)
        self.packs = tells_rows_apart(hf, config)
        usual = MICRO_TOKENS if self.device.type == "cpu" else MICRO_TOKENS_DEVICE
        self.micro = config.micro_tokens or usual
        self.on_less: Callable[[int], None] = lambda micro: None
        if adapter is None:
            self.peft = add_lora(hf, config).to(self.device)
            self.notes += untrained_experts(self.peft, config)
        else:
            self.peft = adapters.attach(hf, adapter, config.model).to(self.device)
        self.hf = self.peft.get_base_model()
        for module in self.hf.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        self._pack()
        self.short = DTYPES[config.dtype] if config.low else None
        if self.short is not None:
            keep_sums(self.peft)
        if config.gradient_checkpointing and adapter is None:
            self.hf.train()
            self.hf.activation_checkpointing_enable({"use_reentrant": False})
        else:
            self.hf.eval()
        self._keep: Tensor | None = None
        me = weakref.ref(self)  # a hook of the module must not keep the model that holds it alive
        self.hf.get_output_embeddings().register_forward_pre_hook(
            lambda _, args: model._drop_positions(args) if (model := me()) else args
        )
        self._table: Tensor = torch.empty(0)
        self.width = int(self.embed(torch.zeros(1, 1, dtype=torch.long)).shape[-1])

    def _pack(self) -> None:
        """Make every LoRA parameter a view into one flat buffer."""
        named = [(n, p) for n, p in self.hf.named_parameters() if p.requires_grad]
        dtype = torch.float32 if self.config.low else DTYPES[self.config.dtype]
        self.names = [n for n, _ in named]
        self.shapes = [p.shape for _, p in named]
        self.size = sum(p.numel() for _, p in named)
        self._buffer = torch.zeros(self.size, dtype=dtype, device=self.device)
        for (_, parameter), view in zip(named, self._views(self._buffer), strict=True):
            view.copy_(parameter.data)
            parameter.data = view
        self._parameters = [p for _, p in named]

    def _views(self, flat: Tensor) -> list[Tensor]:
        parts = flat.split([math.prod(s) for s in self.shapes])
        return [part.view(shape) for part, shape in zip(parts, self.shapes, strict=True)]

    def _drop_positions(self, args: tuple[Tensor, ...]) -> Any:
        return args if self._keep is None else (args[0][self._keep], *args[1:])

    # --- theta ------------------------------------------------------------------------------

    def fresh_theta(self, seed: int) -> Tensor:
        """LoRA's initial values, (P,): A uniform in +-1/sqrt(fan-in), B zero, as `peft` draws them.

        The draw is made on the CPU, so that it is the same on every device.
        """
        generator = torch.Generator().manual_seed(seed)
        parts = []
        for name, shape in zip(self.names, self.shapes, strict=True):
            if "lora_A" in name:
                bound = 1 / math.sqrt(math.prod(shape[1:]))
                draw = torch.empty(shape, dtype=torch.float32).uniform_(
                    -bound, bound, generator=generator
                )
            else:
                draw = torch.zeros(shape)
            parts.append(draw.flatten())
        return torch.cat(parts).to(self._buffer)

    def zero_theta(self) -> Tensor:
        """The model without any training, (P,)."""
        return torch.zeros_like(self._buffer)

    def write(self, theta: Tensor) -> None:
        """Put theta (P,) into the module's own LoRA parameters."""
        self._buffer.copy_(theta)

    def named_theta(self, theta: Tensor) -> dict[str, Tensor]:
        """Theta (P,) as named LoRA matrices (views)."""
        return dict(zip(self.names, self._views(theta), strict=True))

    # --- embeddings -------------------------------------------------------------------------

    def embed(self, ids: Tensor) -> Tensor:
        """What the input embedding module returns for ids (...,): (..., d), without gradient."""
        with torch.no_grad():
            return self.hf.get_input_embeddings()(ids.to(self.device))

    @property
    def table(self) -> Tensor:
        """Every token's embedding as the model's layers receive it, (V, d)."""
        if not len(self._table):
            rows = self.hf.get_input_embeddings().weight.shape[0]
            probe = torch.arange(min(rows, 64), device=self.device)
            weight = self.hf.get_input_embeddings().weight.detach()
            if torch.equal(self.embed(probe), weight[: len(probe)]):
                self._table = weight  # no copy where the module is a plain look-up
            else:
                self._table = self.embed(torch.arange(rows))
        return self._table

    def inputs(self, batch: Batch, vectors: Tensor | None) -> Tensor:
        """`inputs_embeds` (B, T, d): token embeddings, `vectors` (Q, d) in the batch's slots."""
        embeds = self.embed(batch.ids)
        if self.short is not None:
            embeds = embeds.float()
        if vectors is None:
            return embeds
        slots = batch.slots.to(self.device)
        where = slots >= 0
        return embeds.index_put((where,), vectors[slots[where]].to(embeds.dtype))

    # --- loss -------------------------------------------------------------------------------

    def products(self) -> contextlib.AbstractContextManager[None]:
        """The context of every pass of `inputs` through `hf`."""
        return short_products(self.device, self.short)

    def lay_out(self, batch: Batch) -> tuple[Batch, dict[str, Tensor]]:
        """The batch as it passes through the model, and how the model tells its rows apart.

        Returns:
            The rows packed, (1, S), with `position_ids`; or the batch as it is, (B, T), with its
            `attention_mask`, where nothing is padding or the model cannot tell packed rows apart.
        """
        batch = batch.to(self.device)
        if self.packs and batch.tokens < batch.ids.numel():
            packed, positions = batch.packed()
            return packed, {"position_ids": positions}
        return batch, {"attention_mask": batch.attention}

    def in_parts(self, batch: Batch, run: Callable[[list[Batch]], T], *, backward: int = 1) -> T:
        """What `run` makes of a batch's parts; see `nacd.model.parts.in_parts`."""
        return in_parts(self, batch, run, backward)

    def response_logits(
        self,
        batch: Batch,
        vectors: Tensor | None = None,
        overrides: dict[str, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Logits (n, V) and labels (n,) of every response token, row after row."""
        batch, told = self.lay_out(batch)
        predicts = torch.zeros_like(batch.response)
        predicts[:, :-1] = batch.response[:, 1:]
        labels = batch.ids[:, 1:][batch.response[:, 1:]]
        kwargs = {"inputs_embeds": self.inputs(batch, vectors), "use_cache": False, **told}
        self._keep = predicts
        try:
            with self.products():
                if overrides is None:
                    logits = self.hf(**kwargs).logits
                else:
                    logits = functional_call(self.hf, overrides, (), kwargs).logits
        finally:
            self._keep = None
        return logits.float() if logits.dtype in SHORT else logits, labels

    def token_nll(
        self, batch: Batch, vectors: Tensor | None, overrides: dict[str, Tensor] | None = None
    ) -> Tensor:
        """Negative log likelihood of every response token, (n,), row after row.

        Of a batch with a teacher's labels, the cross entropy with those (`nacd.model.soft_loss`).
        """
        logits, labels = self.response_logits(batch, vectors, overrides)
        if batch.soft is not None:
            return soft_nll(logits, labels, batch.soft.to(logits.device))
        return F.cross_entropy(logits, labels, reduction="none")

    def value_and_grad(
        self,
        theta: Tensor,
        batch: Batch,
        vectors: Tensor | None = None,
        *,
        in_vectors: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Mean response NLL at theta and its gradients, by ordinary autograd.

        Args:
            theta: (P,).
            batch: rows; its slots point into `vectors`.
            vectors: (Q, d) learnable embeddings, or None.
            in_vectors: whether the gradient in `vectors` is wanted too.

        Returns:
            The loss (), its gradient in theta (P,), and in vectors (Q, d) or None.

        Raises:
            OutOfMemory: a row alone does not fit.
        """
        if in_vectors and vectors is None:
            raise ValueError("in_vectors needs vectors")
        leaf = vectors.detach().requires_grad_() if vectors is not None and in_vectors else None
        rows, gradient, other = self._summed(theta, batch, vectors if leaf is None else leaf, leaf)
        return rows.sum() / int(batch.predicted.sum()), gradient, other

    def rows_and_grad(self, theta: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Summed response NLL of every row (B,), and the gradient of the mean per token (P,)."""
        rows, gradient, _ = self._summed(theta, batch, None, None)
        return rows, gradient

    def _summed(
        self, theta: Tensor, batch: Batch, vectors: Tensor | None, leaf: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Rows' summed NLLs (B,), and the mean's gradients in theta (P,) and in `leaf`, if any."""
        self.write(theta)
        wanted = [*self._parameters, *([] if leaf is None else [leaf])]
        labels = int(batch.predicted.sum())

        def run(parts: list[Batch]) -> tuple[Tensor, Tensor, Tensor | None]:
            gradient = torch.zeros_like(theta)
            other = None if leaf is None else torch.zeros_like(leaf)
            rows = []
            for part in parts:
                with torch.enable_grad():
                    nll = self.token_nll(part, vectors)
                    grads = torch.autograd.grad(
                        nll.sum() / labels, wanted, allow_unused=True, materialize_grads=True
                    )
                gradient += torch.cat([g.reshape(-1) for g in grads[: len(self._parameters)]])
                if other is not None:
                    other += grads[-1]
                rows.append(_by_row(nll.detach(), part)[0])
            return torch.cat(rows), gradient, other

        return self.in_parts(batch, run)

    def loss_at(
        self,
        theta: Tensor,
        batch: Batch,
        vectors: Tensor | None = None,
        *,
        labels: int | None = None,
    ) -> Tensor:
        """Mean response NLL as a differentiable function of theta (P,) and vectors (Q, d).

        Args:
            theta: (P,).
            batch: rows; its slots point into `vectors`.
            vectors: (Q, d) learnable embeddings, or None.
            labels: what the sum is divided by, where `batch` is a part; None: its own labels.
        """
        if self.config.gradient_checkpointing or self.config.shard:
            raise RuntimeError(
                "the functional view must not run under gradient checkpointing or shards"
            )
        named = self.named_theta(theta)
        parts = batch.parts(self.micro, packed=self.packs)
        total = torch.stack([self.token_nll(part, vectors, named).sum() for part in parts]).sum()
        return total / (int(batch.predicted.sum()) if labels is None else labels)

    def row_losses(self, batch: Batch) -> Tensor:
        """Mean response NLL of every row (B,), by the parameters that the module holds."""
        sums, counts = _by_row(self.token_nll(batch, None), batch)
        return sums / counts

    @torch.no_grad()
    def row_nll(
        self, theta: Tensor, batch: Batch, vectors: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Summed response NLL (B,) and response tokens (B,) of every row at theta.

        Raises:
            OutOfMemory: a row alone does not fit.
        """
        self.write(theta)

        def run(parts: list[Batch]) -> tuple[Tensor, Tensor]:
            sums, counts = zip(
                *(_by_row(self.token_nll(part, vectors), part) for part in parts), strict=True
            )
            return torch.cat(sums), torch.cat(counts)

        return self.in_parts(batch, run, backward=0)


def _by_row(nll: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """Token NLLs (n,) summed row by row (B,), and each row's response tokens (B,)."""
    counts = batch.predicted.to(nll.device)
    owner = torch.repeat_interleave(torch.arange(len(counts), device=nll.device), counts)
    dtype = torch.promote_types(nll.dtype, torch.float32)
    sums = torch.zeros(len(counts), device=nll.device, dtype=dtype)
    return sums.index_add_(0, owner, nll.to(dtype)), counts


@contextlib.contextmanager
def twice_differentiable() -> Iterator[None]:
    """Scaled-dot-product attention by its MATH kernel: the only one with a double backward."""
    with sdpa_kernel(SDPBackend.MATH):
        yield
