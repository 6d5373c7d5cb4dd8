"""Simulated users."""

from __future__ import annotations

import pytest
import torch

from training.prompts import add_click, draw_plan, group_prompts, prompt_again, prompt_group
from training.recipe import PromptMix


def blocks(count: int) -> torch.Tensor:
    """Masks (count, 1, 32, 32) of an 8-pixel block, each at a place of its own."""
    masks = torch.zeros(count, 1, 32, 32, dtype=torch.bool)
    for i in range(count):
        masks[i, :, 2 * i : 2 * i + 8, 10:18] = True
    return masks


def whole(count: int) -> torch.Tensor:
    """None of these objects is seen in a search region."""
    return torch.zeros(count, dtype=torch.bool)


def test_every_object_is_prompted_in_one_way():
    torch.manual_seed(0)
    masks = blocks(12)
    groups = group_prompts(masks, PromptMix(mask=1, box=1, click=1), whole(12))
    assert [group.kind for group in groups] == ["mask", "box", "click"]
    assert sorted(torch.cat([group.rows for group in groups]).tolist()) == list(range(12))
    given, box, click = groups
    assert given.points is None and given.mask is not None and torch.equal(given.mask, masks[given.rows])
    assert box.mask is None and box.points is not None and box.points.point_labels.tolist() == [[2, 3]] * len(box.rows)
    assert click.points is not None and click.points.point_labels.unique().tolist() == [1]
    for row, (x, y) in zip(click.rows, click.points.point_coords[:, 0].long(), strict=True):
        assert masks[row, 0, y, x]


@pytest.mark.parametrize("kind", ["mask", "box", "click"])
def test_shares_decide_how_often_a_kind_is_used(kind: str):
    shares = {each: float(each == kind) for each in ("mask", "box", "click")}
    groups = group_prompts(blocks(5), PromptMix(shares["mask"], shares["box"], shares["click"]), whole(5))
    assert [group.kind for group in groups] == [kind]


def test_every_kind_has_its_share_of_the_objects_to_within_one():
    mix, sizes = PromptMix(mask=0.7, box=0.2, click=0.1), set()
    firsts = 0
    for seed in range(40):
        torch.manual_seed(seed)
        groups = {group.kind: group.rows.tolist() for group in group_prompts(blocks(8), mix, whole(8))}
        sizes.add(tuple(len(groups.get(kind, [])) for kind in ("mask", "box", "click")))
        firsts += 0 in groups["mask"]
    for size in sizes:
        assert all(abs(count - 8 * share) < 1 for count, share in zip(size, (0.7, 0.2, 0.1), strict=True)), size
    assert len(sizes) > 1, "what does not come out even is drawn"
    assert 20 <= firsts <= 36, "which objects are of a kind is drawn"


def test_objects_in_search_regions_are_prompted_by_their_masks_and_leave_the_others_their_shares():
    near = torch.tensor([True, False, True, False, False, False])
    for seed in range(10):
        torch.manual_seed(seed)
        groups = group_prompts(blocks(6), PromptMix(mask=0, box=1, click=1), near)
        rows = {group.kind: group.rows.tolist() for group in groups}
        assert rows["mask"] == [0, 2] and sorted(rows["box"] + rows["click"]) == [1, 3, 4, 5]
        assert len(rows["box"]) == len(rows["click"])
    (only,) = group_prompts(blocks(6), PromptMix(mask=0, box=1, click=1), torch.ones(6, dtype=torch.bool))
    assert only.kind == "mask" and only.rows.tolist() == list(range(6))


def test_corrections_come_as_often_as_asked_for_and_never_on_the_first_frame():
    torch.manual_seed(0)
    mix = PromptMix(correction=0.25, first_correction=0.5, max_corrections=2)
    drawn = [draw_plan(mix, num_frames=4) for _ in range(400)]
    assert 70 <= sum(bool(each.corrected) for each in drawn) <= 130
    assert 160 <= sum(each.first_clicks > 0 for each in drawn) <= 240
    assert {each.corrected for each in drawn} == {(), (1,), (2,), (3,)}
    assert {each.clicks for each in drawn if each.corrected} == {1, 2}
    assert {each.prompted for each in drawn} == {(0,)}


def test_several_frames_are_prompted_and_others_corrected():
    torch.manual_seed(0)
    mix = PromptMix(correction=1.0, prompted_frames=3, corrected_frames=2)
    drawn = [draw_plan(mix, num_frames=4) for _ in range(400)]
    assert {each.prompted for each in drawn} == {(0,), (0, 1), (0, 2), (0, 3), (0, 1, 2), (0, 1, 3), (0, 2, 3)}
    assert {len(each.corrected) for each in drawn} == {0, 1, 2}
    assert not any({*each.prompted} & {*each.corrected} for each in drawn)


def test_frames_of_the_lead_are_neither_prompted_nor_corrected():
    torch.manual_seed(0)
    mix = PromptMix(correction=1.0, prompted_frames=2, corrected_frames=2, practice=1.0)
    drawn = [draw_plan(mix, num_frames=6, lead=3) for _ in range(200)]
    assert {each.prompted for each in drawn} == {(0,), (0, 4), (0, 5)}
    assert {frame for each in drawn for frame in each.corrected} == {4, 5}
    assert {each.practice_frame for each in drawn} == {0, 4, 5}


def test_on_another_frame_objects_are_prompted_in_their_own_way_unless_they_are_absent():
    groups = [prompt_group("mask", torch.tensor([1]), blocks(4)[[1]])]
    groups.append(prompt_group("click", torch.tensor([0, 2, 3]), blocks(4)[[0, 2, 3]]))
    masks = blocks(4)
    masks[2] = False
    again = prompt_again(groups, masks)
    assert [(group.kind, group.rows.tolist()) for group in again] == [("mask", [1]), ("click", [0, 3]), ("mask", [2])]
    assert again[2].mask is not None and not again[2].mask.any() and again[1].points is not None


def test_a_single_frame_has_no_later_one_to_correct():
    mix = PromptMix(correction=1.0, corrected_frames=2, prompted_frames=2)
    plan = draw_plan(mix, num_frames=1)
    assert plan.corrected == () and plan.prompted == (0,)


def test_clicks_say_what_was_missed_and_what_was_wrong():
    target, answer = blocks(2), blocks(2)
    answer[0] = False
    answer[1] = True
    first = add_click(None, target, answer)
    assert first.point_labels.tolist() == [[1], [0]]
    (x0, y0), (x1, y1) = first.point_coords[:, 0].long().tolist()
    assert target[0, 0, y0, x0] and not target[1, 0, y1, x1]
    both = add_click(first, target, answer)
    assert both.point_labels.shape == (2, 2) and torch.equal(both.point_coords[:, :1], first.point_coords)
