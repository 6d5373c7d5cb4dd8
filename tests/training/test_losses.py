"""The parts of the loss, against values worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from sam2.modeling.outputs import SamOutput
from training.losses import Tally, answer_losses, dice_loss, focal_loss, mask_iou, shrink_masks
from training.recipe import LossWeights


def answer(multimasks: torch.Tensor, ious: torch.Tensor, presence: list[float]) -> SamOutput:
    """An answer of B objects with M masks."""
    best = multimasks[:, :1]
    scores = torch.tensor(presence)[:, None]
    return SamOutput(multimasks, ious, best, best, ious[:, :1], torch.zeros(len(ious), 1), scores)


def target_half(objects: int = 1) -> torch.Tensor:
    """Masks (B, 8, 8) whose left half is the object."""
    masks = torch.zeros(objects, 8, 8, dtype=torch.bool)
    masks[:, :, :4] = True
    return masks


def test_focal_loss_weighs_each_pixel_by_how_wrong_it_is():
    logits, target = torch.tensor([[[0.0, math.log(3)]]]), torch.tensor([[[1.0, 0.0]]])
    expected = (0.25 * 0.5**2 * math.log(2) + 0.75 * 0.75**2 * math.log(4)) / 2
    assert focal_loss(logits, target).item() == pytest.approx(expected, rel=1e-5)


def test_dice_loss_compares_overlap_with_the_areas():
    logits, target = torch.tensor([[[0.0, 0.0], [0.0, 0.0]]]), torch.tensor([[[1.0, 1.0], [0.0, 0.0]]])
    assert dice_loss(logits, target).item() == pytest.approx(1 - (2 * 1 + 1) / (2 + 2 + 1), rel=1e-5)


def test_iou_of_two_empty_masks_is_one():
    empty, full = torch.zeros(2, 2, dtype=torch.bool), torch.ones(2, 2, dtype=torch.bool)
    found = mask_iou(torch.stack([empty, empty, full]), torch.stack([empty, full, full]))
    assert found.tolist() == [1.0, 0.0, 1.0]


def test_masks_are_shrunk_to_the_share_of_each_cell_that_they_cover():
    mask = torch.tensor([[[1, 1, 0, 0], [1, 0, 0, 0]]], dtype=torch.bool)
    assert shrink_masks(mask, 2).tolist() == [[[0.75, 0.0]]]


def test_only_the_best_of_several_masks_is_trained_but_every_predicted_iou():
    good = torch.where(target_half()[:, None], 5.0, -5.0)
    multimasks = torch.cat([-good, good, 0 * good], dim=1).requires_grad_()
    ious = torch.tensor([[0.5, 0.5, 0.5]], requires_grad=True)
    answer_losses(answer(multimasks, ious, [3.0]), target_half(), LossWeights(stride=1)).losses.total.backward()
    assert multimasks.grad is not None and ious.grad is not None
    assert [bool(part.abs().sum() > 0) for part in multimasks.grad[0]] == [False, True, False]
    # The masks reach IoU 0, 1 and 0, so that the estimates go down, up and down.
    assert torch.allclose(ious.grad, torch.tensor([[1.0, -1.0, 1.0]]) / 3)


def test_an_absent_object_trains_its_presence_alone():
    multimasks = torch.zeros(2, 3, 8, 8, requires_grad=True)
    target = target_half(2)
    target[1] = False
    ious = torch.full((2, 3), 0.3, requires_grad=True)
    answered = answer_losses(answer(multimasks, ious, [3.0, 3.0]), target, LossWeights(stride=1))
    losses = answered.losses
    losses.total.backward()
    assert multimasks.grad is not None and ious.grad is not None
    assert multimasks.grad[0].abs().sum() > 0 and multimasks.grad[1].abs().sum() == 0
    assert ious.grad[1].abs().sum() == 0
    assert losses.presence.item() == pytest.approx(math.log1p(math.exp(-3)) + math.log1p(math.exp(3)), rel=1e-5)
    assert answered.visible.tolist() == [True, False]


def test_an_object_that_is_taken_for_absent_trains_its_presence_and_the_predicted_iou_towards_0():
    multimasks = torch.zeros(1, 3, 8, 8, requires_grad=True)
    ious = torch.tensor([[0.2, 0.4, 0.9]], requires_grad=True)
    losses = answer_losses(answer(multimasks, ious, [-2.0]), target_half(1), LossWeights(stride=1)).losses
    losses.total.backward()
    assert losses.iou.item() == pytest.approx(0.5) and losses.focal.item() == losses.dice.item() == 0
    assert ious.grad is not None and (ious.grad > 0).all()
    assert multimasks.grad is None or multimasks.grad.abs().sum() == 0


def test_the_total_is_the_weighted_sum():
    torch.manual_seed(0)
    parts = answer(torch.randn(2, 3, 8, 8), torch.rand(2, 3), [1.0, 2.0])
    losses = answer_losses(parts, target_half(2), LossWeights(focal=20, dice=1, iou=2, presence=3, stride=1)).losses
    expected = 20 * losses.focal + losses.dice + 2 * losses.iou + 3 * losses.presence
    assert losses.total.item() == pytest.approx(expected.item(), rel=1e-6)


def test_the_iou_is_that_of_the_mask_the_network_chose_and_zero_where_it_sees_nothing():
    good = torch.where(target_half(2)[:, None], 5.0, -5.0)
    multimasks = torch.cat([good, torch.full_like(good, 5.0), -good], dim=1)
    estimates = torch.tensor([[0.1, 0.9, 0.2]]).expand(2, 3)
    answered = answer_losses(answer(multimasks, estimates, [1.0, -1.0]), target_half(2), LossWeights(stride=1))
    assert answered.ious.tolist() == [0.5, 0.0]  # all pixels, of which half are the object


def test_a_tally_keeps_tracking_and_prompts_apart():
    good = torch.where(target_half(2)[:, None], 5.0, -5.0)
    right, wrong = (answer(masks, torch.ones(2, 1), [1.0, 1.0]) for masks in (good, -good))
    tally = Tally(LossWeights(stride=1))
    tally.add("tracked", [wrong, right], target_half(2))
    tally.add("tracked", [right], target_half(2), counted=torch.tensor([True, False]))
    tally.add("prompted", [right], target_half(2))
    result = tally.result(0.5)
    assert (result.tracked_iou.item(), result.tracked.item()) == (1.0, 3.0)
    assert (result.prompted_iou.item(), result.prompted.item()) == (2.0, 2.0)
    parts = [answer_losses(each, target_half(2), LossWeights(stride=1)).losses.total for each in (wrong, right)]
    assert result.losses.total.item() == pytest.approx(0.5 * (parts[0] + 3 * parts[1]).item(), rel=1e-6)
