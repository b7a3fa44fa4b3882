"""The loss that trains a quantized student on its float teacher; called in users' training loops."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def distillation_loss(
    student: Tensor, teacher: Tensor, labels: Tensor | None = None, *, temperature: float = 4.0, alpha: float = 0.5
) -> Tensor:
    """`alpha * T^2 * KL(teacher || student) + (1 - alpha) * cross_entropy(student, labels)`, both distributions softened by
    the temperature T: Hinton, Vinyals and Dean, "Distilling the knowledge in a neural network" (2015). Without labels, the
    first term alone. The factor T^2 keeps gradients as large as they are at T = 1, so that alpha means the same at every T.

    Args:
        student, teacher: logits, [N, classes] or [N, classes, d1, ...] as `torch.nn.functional.cross_entropy` takes them, of
            one shape. No gradient reaches the teacher.
        labels: class indices [N] or [N, d1, ...] (-100 is ignored in the second term), or probabilities of the logits' shape.
        temperature: above 0; 1 leaves the distributions as they are.
        alpha: from 0 to 1, the weight of the teacher.

    Returns:
        A scalar, the mean over all predictions.

    Raises:
        ValueError: naming the argument, what is allowed and what it got.
    """
    if student.shape != teacher.shape or student.dim() < 2:
        raise ValueError(
            "distillation_loss: student and teacher must be logits of one shape, [N, classes] or [N, classes, ...], got "
            f"{list(student.shape)} and {list(teacher.shape)}"
        )
    if not temperature > 0:
        raise ValueError(f"distillation_loss: temperature must be greater than 0, got {temperature!r}")
    if not 0 <= alpha <= 1:
        raise ValueError(f"distillation_loss: alpha must be from 0 to 1, got {alpha!r}")
    student_log = F.log_softmax(student / temperature, dim=1)
    teacher_log = F.log_softmax(teacher.detach() / temperature, dim=1)
    predictions = student.numel() // max(student.size(1), 1)
    divergence = F.kl_div(student_log, teacher_log, reduction="sum", log_target=True) / max(predictions, 1)
    soft = temperature**2 * divergence
    return soft if labels is None else torch.lerp(F.cross_entropy(student, labels), soft, alpha)
