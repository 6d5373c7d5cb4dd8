"""The network over a clip: prompt the first frame and perhaps others, track the rest from memory, correct some answers,
and sum up the losses.

N clips, T frames, B objects of all clips together, S x S pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sam2.modeling.memory_bank import MemoryBank
from sam2.modeling.outputs import FrameFeatures, FrameOutput, FrameRequest, PointInputs, SamOutput
from sam2.modeling.sam2_base import SAM2Base
from sam2.utils.transforms import IMAGE_MEAN, IMAGE_STD
from training.clips import ClipBatch
from training.losses import BatchResult, Tally
from training.prompts import Plan, PromptGroup, add_click, draw_plan, group_prompts, prompt_again, prompt_group
from training.recipe import LossWeights, PromptMix

PRACTICE_UNIT = 8  # of more objects than this, a multiple of it is tried out, so that sizes come again
FRAMES_AT_ONCE = 8  # that are encoded together without gradients
LOGIT_LIMIT = 32.0  # previous answers are fed back clamped, as the predictors do


class ClipResult(NamedTuple):
    """The losses of a batch, and the masks (B, T, S, S) bool if they were asked for."""

    batch: BatchResult
    masks: Tensor | None


class ClipMaps(NamedTuple):
    """The maps of whole clips. Those of the lead, which have no gradients, stay apart: going back through the others
    costs nothing for them."""

    trained: FrameFeatures  # N num_trained frames: the first of each clip, and those after the lead
    num_trained: int  # frames per clip
    led: FrameFeatures | None  # N lead frames
    lead: int

    def is_lead(self, t: int) -> bool:
        """Whether frame t is tracked only."""
        return 0 < t <= self.lead

    def of_objects(self, clip_of: Tensor, t: int) -> FrameFeatures:
        """The maps of frame t, once per object."""
        if self.led is not None and self.is_lead(t):
            return _rows_of(self.led, clip_of * self.lead + t - 1)
        return _rows_of(self.trained, clip_of * self.num_trained + max(t - self.lead, 0))


class ClipModel(nn.Module):
    """A network that is trained or measured on whole clips.

    Every object of every clip is one entry of the batch; the image encoder sees each frame once, however many objects
    are in it. The network remembers its own answers, as it does in use.
    """

    image_mean: Tensor  # (3, 1, 1), of pixels from 0 to 255
    image_std: Tensor

    def __init__(self, network: SAM2Base, weights: LossWeights) -> None:
        super().__init__()
        self.network = network
        self.weights = weights
        for name, value in (("image_mean", IMAGE_MEAN), ("image_std", IMAGE_STD)):
            self.register_buffer(name, 255 * torch.tensor(value)[:, None, None], persistent=False)

    def forward(self, batch: ClipBatch, mix: PromptMix, *, lead: int = 0, keep_masks: bool = False) -> ClipResult:
        """Prompt and track all objects. The random choices are torch's global generator's.

        Args:
            lead: how many frames after the first are tracked without gradients or losses. The frames after them start
                from masks that have drifted, as they do late in a long video.
            keep_masks: return the masks of all frames.
        """
        num_objects, num_frames = batch.masks.shape[:2]
        encoded = self._encode_apart(batch, lead)
        groups = group_prompts(batch.masks[:, 0, None], mix, batch.near_objects)
        plan = draw_plan(mix, num_frames, lead)
        bank, tally, kept = MemoryBank({}, {}), Tally(self.weights), {}
        order = (*plan.prompted, *(t for t in range(num_frames) if t not in plan.prompted))
        for t in order:
            target = batch.masks[:, t, None]  # (B, 1, S, S)
            is_lead = encoded.is_lead(t)
            with _no_gradients() if is_lead else nullcontext():
                features = encoded.of_objects(batch.clip_of, t)
                if t in plan.prompted:
                    prompts = groups if t == 0 else prompt_again(groups, target)
                    output = self._prompted_frame(features, target, prompts, plan.first_clicks, tally)
                else:
                    answers = self._tracked_frame(features, target, bank, FrameRequest(t, num_frames), plan)
                    if not is_lead:
                        tally.add("tracked", answers, target[:, 0], counted=_prompted_by_mask(groups, num_objects))
                    output = answers[-1]
                if t == plan.practice_frame:
                    self._practise(features, target, batch.near_objects, plan.practice_clicks, tally)
                if t != order[-1]:
                    frames = bank.prompted if t in plan.prompted or t in plan.corrected else bank.propagated
                    frames[t] = self._remember(features, output)  # type: ignore[index]
            if keep_masks:
                kept[t] = output.high_res_masks[:, 0] > 0
        masks = torch.stack([kept[t] for t in sorted(kept)], dim=1) if keep_masks else None
        return ClipResult(tally.result(1 / (num_objects * (num_frames - lead))), masks)

    def _encode_apart(self, batch: ClipBatch, lead: int) -> ClipMaps:
        """Encode all frames, those of the lead without gradients."""
        if lead == 0:
            return ClipMaps(self._encode(batch.frames), batch.frames.shape[1], None, 0)
        first, led, rest = batch.frames.tensor_split([1, 1 + lead], dim=1)
        with _no_gradients():
            led_maps = self._encode(led)
        return ClipMaps(self._encode(torch.cat([first, rest], dim=1)), 1 + rest.shape[1], led_maps, lead)

    def _encode(self, frames: Tensor) -> FrameFeatures:
        """Frames uint8 (N, T, 3, S, S) -> the maps of all N T frames."""
        # Without gradients only the maps are kept, so that long clips need no more memory than short ones.
        parts = [frames.flatten(0, 1)] if torch.is_grad_enabled() else frames.flatten(0, 1).split(FRAMES_AT_ONCE)
        encoded = [self.network.encode_image((part.float() - self.image_mean) / self.image_std) for part in parts]
        maps = [torch.cat(level) for level in zip(*(part.maps for part in encoded), strict=True)]
        return FrameFeatures(maps, encoded[0].positions)

    def _prompted_frame(
        self, features: FrameFeatures, target: Tensor, groups: list[PromptGroup], clicks: int, tally: Tally
    ) -> SamOutput:
        """A prompted frame: every group is decoded by itself; all but given masks are trained, perhaps corrected."""
        finals = []
        for group in groups:
            answers = self._answer_prompts(features, target, group, clicks)
            if group.points is not None:
                tally.add("prompted", answers, target[group.rows, 0])
            finals.append(answers[-1])
        order = torch.cat([group.rows for group in groups]).argsort()
        return _merge(finals, order)

    def _practise(self, features: FrameFeatures, target: Tensor, near: Tensor, clicks: int, tally: Tally) -> None:
        """Prompt the visible objects of whole frames by a box, and by a click, that leave no memory, and correct the
        answers."""
        rows = (target.flatten(1).any(dim=1) & ~near).nonzero()[:, 0]
        if len(rows) > PRACTICE_UNIT:  # see `exactly`
            rows = rows[torch.randperm(len(rows))[: len(rows) - len(rows) % PRACTICE_UNIT].to(rows.device)]
        for kind in ("box", "click") if len(rows) else ():
            group = prompt_group(kind, rows, target[rows])
            tally.add("prompted", self._answer_prompts(features, target, group, clicks), target[rows, 0])

    def _answer_prompts(
        self, features: FrameFeatures, target: Tensor, group: PromptGroup, clicks: int
    ) -> list[SamOutput]:
        """Decode a frame that nothing is remembered on, and correct the answer to points by `clicks` clicks."""
        part, nothing = _rows_of(features, group.rows), MemoryBank({}, {})
        mask = None if group.mask is None else group.mask.float()
        request = FrameRequest(0, 1, reads_memory=False, points=group.points, mask=mask)
        answers = [self.network.segment(part, nothing, request)]
        if clicks and group.points is not None:
            conditioned = self.network.read_memory(part, nothing, request)
            answers += self._correct(part, conditioned, target[group.rows], answers[0], group.points, clicks, True)
        return answers

    def _tracked_frame(
        self, features: FrameFeatures, target: Tensor, bank: MemoryBank, request: FrameRequest, plan: Plan
    ) -> list[SamOutput]:
        """Another frame: read memory, decode, and correct the answer if it is planned."""
        conditioned = self.network.read_memory(features, bank, request)
        answers = [
            self.network.decode_masks(
                conditioned, high_res_features=features.high_res,
                multimask_output=self.network._use_multimask(False, None),
            )
        ]  # fmt: skip
        if request.frame_idx in plan.corrected:
            answers += self._correct(features, conditioned, target, answers[0], None, plan.clicks, False)
        return answers

    def _correct(
        self, features: FrameFeatures, conditioned: Tensor, target: Tensor, answer: SamOutput,
        points: PointInputs | None, clicks: int, first_look: bool,
    ) -> list[SamOutput]:  # fmt: skip
        """Click where the last answer is wrong and decode again, `clicks` times."""
        answers = []
        for _ in range(clicks):
            points = add_click(points, target, answer.high_res_masks > 0)
            answer = self.network.decode_masks(
                conditioned, point_inputs=points,
                mask_inputs=answer.low_res_masks.detach().clamp(-LOGIT_LIMIT, LOGIT_LIMIT),
                high_res_features=features.high_res,
                multimask_output=self.network._use_multimask(first_look, points),
            )  # fmt: skip
            answers.append(answer)
        return answers

    def _remember(self, features: FrameFeatures, output: SamOutput) -> FrameOutput:
        memory = self.network.write_memory(features, output.high_res_masks, output.object_score_logits, False)
        return FrameOutput(
            output.low_res_masks, output.obj_ptr, output.object_score_logits,
            maskmem_features=memory.features, maskmem_pos_enc=[memory.position],
        )  # fmt: skip


@contextmanager
def _no_gradients() -> Iterator[None]:
    """`torch.no_grad` inside a pass that trains."""
    with torch.no_grad():
        yield
    # Older torch (2.5, no longer 2.14) hands weights that autocast has cast in here, without gradients, to what is
    # trained later (pytorch issue 158232).
    torch.clear_autocast_cache()


def _prompted_by_mask(groups: list[PromptGroup], num_objects: int) -> Tensor:
    """Which objects were prompted by their mask, bool (B,)."""
    given = torch.zeros(num_objects, dtype=torch.bool, device=groups[0].rows.device)
    for group in groups:
        given[group.rows] = group.mask is not None
    return given


def _rows_of(features: FrameFeatures, rows: Tensor) -> FrameFeatures:
    """The maps of some frames. All frames have the same position encodings."""
    return FrameFeatures(
        [x[rows] for x in features.maps], [p[:1].expand(len(rows), -1, -1, -1) for p in features.positions]
    )


def _merge(outputs: list[SamOutput], order: Tensor) -> SamOutput:
    """One output of all objects, each with its chosen mask only; `order` sorts them into their rows."""
    one = [output._replace(low_res_multimasks=output.low_res_masks, ious=output.best_ious) for output in outputs]
    return SamOutput(*(torch.cat([field.float() for field in fields])[order] for fields in zip(*one, strict=True)))
