"""The loss of one answer of the network: focal, dice, predicted IoU and presence (SAM 2, appendix D).

B objects, M candidate masks, R x R pixels of the loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from sam2.modeling.outputs import SamOutput
from training.recipe import LossWeights

FOCAL_ALPHA, FOCAL_GAMMA = 0.25, 2  # Lin et al. 2017, arXiv:1708.02002


class Losses(NamedTuple):
    """The loss, scalars; `total` is the weighted sum of the parts."""

    total: Tensor
    focal: Tensor
    dice: Tensor
    iou: Tensor
    presence: Tensor


class Answered(NamedTuple):
    """How good one answer is."""

    losses: Losses  # sums over objects
    ious: Tensor  # (B,) IoU of the mask that the network chose; 0 where it takes a visible object for absent
    visible: Tensor  # (B,) bool: where there is an object


class BatchResult(NamedTuple):
    """The loss of a batch, and sums over its objects and frames that tell how the network does, scalars."""

    losses: Losses
    tracked_iou: Tensor  # of visible objects that were prompted by their mask, before any correction, after the lead
    tracked: Tensor  # how many there were
    prompted_iou: Tensor  # of the first answers to boxes and clicks
    prompted: Tensor


class Tally:
    """Sums up the answers to a batch."""

    def __init__(self, weights: LossWeights) -> None:
        self.weights = weights
        self._losses: list[Losses] = []
        self._sums: dict[str, list[Tensor]] = {"tracked_iou": [], "tracked": [], "prompted_iou": [], "prompted": []}

    def add(self, kind: str, answers: Sequence[SamOutput], target: Tensor, counted: Tensor | None = None) -> None:
        """Add the first answer to a frame and its corrections.

        Args:
            kind: what the first one counts as, "tracked" or "prompted".
            target: masks bool (B, S, S).
            counted: bool (B,), the objects whose first answer counts; all by default. The losses of all are added.
        """
        results = [answer_losses(answer, target, self.weights) for answer in answers]
        self._losses += [result.losses for result in results]
        first = results[0]
        counts = first.visible if counted is None else first.visible & counted
        self._sums[f"{kind}_iou"].append((first.ious * counts).sum())
        self._sums[kind].append(counts.sum().float())

    def result(self, scale: float) -> BatchResult:
        """What was added, the losses times `scale`."""
        losses = Losses(*(scale * torch.stack(parts).sum() for parts in zip(*self._losses, strict=True)))
        nothing = torch.zeros_like(losses.total)
        sums = {name: torch.stack([nothing, *values]).sum() for name, values in self._sums.items()}
        return BatchResult(losses, **sums)


def focal_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Focal loss of logits (..., R, R) against shares 0 to 1 of the same shape, mean over pixels -> (...)."""
    surprise = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    share = logits.sigmoid()
    miss = share + target - 2 * share * target  # 1 - probability of the right answer
    alpha = FOCAL_ALPHA * target + (1 - FOCAL_ALPHA) * (1 - target)
    return (alpha * miss**FOCAL_GAMMA * surprise).mean(dim=(-2, -1))


def dice_loss(logits: Tensor, target: Tensor) -> Tensor:
    """1 - Dice of logits (..., R, R) against shares 0 to 1 of the same shape, smoothed by one pixel -> (...)."""
    share = logits.sigmoid()
    common = (share * target).sum(dim=(-2, -1))
    return 1 - (2 * common + 1) / (share.sum(dim=(-2, -1)) + target.sum(dim=(-2, -1)) + 1)


def mask_iou(masks: Tensor, target: Tensor) -> Tensor:
    """IoU of bool masks (..., R, R); two empty masks agree -> (...)."""
    common = (masks & target).sum(dim=(-2, -1)).float()
    either = (masks | target).sum(dim=(-2, -1)).float()
    return torch.where(either > 0, common / either.clamp(min=1), 1.0)


def shrink_masks(masks: Tensor, stride: int) -> Tensor:
    """Bool masks (B, S, S) as the share of each stride x stride cell that they cover, float (B, S/stride, S/stride)."""
    return F.avg_pool2d(masks.float()[:, None], stride)[:, 0] if stride > 1 else masks.float()


def answer_losses(answer: SamOutput, target: Tensor, weights: LossWeights) -> Answered:
    """The loss of one pass of the decoder.

    Of several masks only the one with the lowest focal and dice loss is trained, but the predicted IoU of all. An
    object that is not there trains the presence score alone. One that the network takes for absent trains no mask,
    whose logits are constants then, and its predicted IoUs towards 0.

    Args:
        target: masks bool (B, S, S).
    """
    visible = target.flatten(1).any(dim=1)  # (B,)
    presence = F.binary_cross_entropy_with_logits(
        answer.object_score_logits[:, 0].float(), visible.float(), reduction="sum"
    )
    shares = shrink_masks(target, weights.stride)
    rows = (visible & (answer.object_score_logits[:, 0] > 0)).nonzero()[:, 0]
    size = (shares.shape[-2], shares.shape[-1])
    logits = F.interpolate(answer.low_res_multimasks[rows].float(), size, mode="bilinear", align_corners=False)
    wanted = shares[rows][:, None].expand_as(logits)  # (b, M, R, R)

    focal, dice = focal_loss(logits, wanted), dice_loss(logits, wanted)  # (b, M)
    best = (weights.focal * focal + weights.dice * dice).argmin(dim=1, keepdim=True)
    focal, dice = focal.gather(1, best).sum(), dice.gather(1, best).sum()
    predicted = answer.ious.float()  # (B, M)
    with torch.no_grad():
        actual = torch.zeros_like(predicted)
        actual[rows] = mask_iou(logits > 0, wanted >= 0.5)
    iou = ((predicted - actual).abs().mean(dim=1) * visible).sum()
    total = weights.focal * focal + weights.dice * dice + weights.iou * iou + weights.presence * presence
    ious = actual.gather(1, predicted.argmax(dim=1, keepdim=True))[:, 0]
    return Answered(Losses(total, focal, dice, iou, presence), ious, visible)
