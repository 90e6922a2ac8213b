"""The loss of a student that has a teacher's soft labels."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from nacd.data.batches import SoftTargets


def soft_nll(logits: Tensor, labels: Tensor, soft: SoftTargets) -> Tensor:
    """The loss of a student that has a teacher's soft labels (Hinton et al., arXiv 1503.02531).

    Args:
        logits: (n, V), the student's.
        labels: (n,) token ids.
        soft: q, what the teacher expects there, at weight w.

    Returns:
        -w sum_k q_k log p_k - (1 - w) log p_label, (n,), in nats.
    """
    logs = logits.log_softmax(-1)
    taught = -(soft.shares.to(logs) * logs.gather(1, soft.tokens)).sum(1)
    if soft.weight == 1:
        return taught
    return soft.weight * taught + (1 - soft.weight) * F.nll_loss(logs, labels, reduction="none")
