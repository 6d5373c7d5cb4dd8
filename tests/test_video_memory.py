"""Packed masks: what comes back of what was kept."""

import tracemalloc
import weakref

import numpy as np
import torch

from sam2.modeling.outputs import FrameOutput
from sam2.video_memory import BLOCK_BYTES, BLOCK_ROWS, FadedOutput, PackedMask, Shelf, pack_masks, unpack_mask


def pack_one(logits):
    (packed,) = pack_masks(logits)
    return packed


def smooth_logits(side: int, seed: int = 0) -> torch.Tensor:
    noise = torch.randn(1, 1, side // 16, side // 16, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(8 * noise, (side, side), mode="bicubic")


def test_logits_near_the_edge_come_back_almost_as_they_were_and_the_others_by_their_side():
    logits = smooth_logits(64)
    found = unpack_mask(pack_one(logits))
    near, far = logits.abs() < 7.5, logits.abs() > 7.7
    assert near.any() and far.any()
    assert ((found - logits).abs() <= 0.09 + 0.09 * logits.abs())[near].all()
    assert torch.equal(found[far], 10 * logits[far].sign())


def test_every_pixel_keeps_its_side():
    logits = torch.tensor([[[[-1e-6, 0.0, 1e-6], [0.05, -0.05, 0.1], [2.0, -2.0, -1024.0]]]])
    assert torch.equal(unpack_mask(pack_one(logits)) > 0, logits > 0)
    logits = smooth_logits(256)
    assert torch.equal(unpack_mask(pack_one(logits)) > 0, logits > 0)


def test_masks_are_packed_one_by_one_in_a_single_go():
    batch = torch.cat([smooth_logits(32, seed) for seed in range(3)])
    assert pack_masks(batch) == [pack_one(batch[i : i + 1]) for i in range(3)]


def test_any_shape_and_precision_can_be_packed():
    logits = smooth_logits(32)[..., :17].to(torch.bfloat16)
    found = unpack_mask(pack_one(logits))
    assert found.shape == (1, 1, 32, 17) and found.dtype == torch.float32


def test_a_mask_of_one_object_packs_to_a_few_percent():
    y, x = torch.meshgrid(torch.arange(256), torch.arange(256), indexing="ij")
    logits = (60 - ((x - 100.0) ** 2 + (y - 140.0) ** 2).sqrt())[None, None]
    assert len(pack_one(logits).data) < 0.02 * logits.nbytes


def test_a_faded_output_keeps_pointer_and_scores_and_reads_like_an_output():
    pointers = torch.randn(3, 8)
    output = FrameOutput(smooth_logits(32), pointers[1:2], torch.full((1, 1), 2.5), ious=torch.full((1, 1), 0.75))
    output.maskmem_features = torch.zeros(1, 4, 2, 2)
    (faded,) = FadedOutput.of([output], [Shelf()])
    expected = pointers[1:2].clone()
    pointers.zero_()
    assert torch.equal(faded.obj_ptr, expected), "a copy, which does not keep the batch's pointers"
    assert (faded.object_score_logits.item(), faded.ious.item()) == (2.5, 0.75)
    assert faded["maskmem_features"] is None and faded["pred_masks"].shape == (1, 1, 32, 32)


def test_pieces_on_a_shelf_share_blocks_and_keep_what_they_are():
    shelf, rng = Shelf(), np.random.default_rng(0)
    given = [PackedMask(rng.bytes(size), 4, 5) for size in rng.integers(1, BLOCK_BYTES // 3, 10)]
    given.append(PackedMask(rng.bytes(2 * BLOCK_BYTES), 4, 5))  # larger than a block
    kept = [shelf.keep_mask(packed) for packed in given]
    assert [(bytes(k.data), k.height, k.width) for k in kept] == [(g.data, 4, 5) for g in given]
    assert all(k.data.readonly for k in kept)
    assert len({id(k.data.obj) for k in kept}) < len(kept) - 1
    pointers = torch.randn(BLOCK_ROWS + 3, 2)
    rows = [shelf.keep_pointer(pointer[None]) for pointer in pointers]
    assert torch.equal(torch.cat([row.tensor for row in rows]), pointers)
    assert len({row.block.data_ptr() for row in rows}) == 2
    half = shelf.keep_pointer(torch.ones(1, 2, dtype=torch.bfloat16))
    assert half.tensor.dtype == torch.bfloat16 and torch.equal(half.tensor.float(), torch.ones(1, 2))


def test_a_block_goes_with_the_last_piece_in_it():
    def blocks() -> int:
        return round(tracemalloc.get_traced_memory()[0] / BLOCK_BYTES)

    tracemalloc.start()
    try:
        shelf, kept = Shelf(), []
        for _ in range(20):
            kept.append(shelf.keep_mask(PackedMask(bytes(BLOCK_BYTES // 4), 4, 5)))
        assert blocks() == 5
        del kept[:-6]  # as a stream forgets its oldest frames
        assert blocks() == 2
        del shelf, kept[:]
        assert blocks() == 0
    finally:
        tracemalloc.stop()


def test_a_block_of_pointers_goes_with_the_last_pointer_in_it():
    shelf = Shelf()
    rows = [shelf.keep_pointer(torch.zeros(1, 2)) for _ in range(BLOCK_ROWS + 1)]
    block = weakref.ref(rows[0].block)
    del rows[1:]
    assert block() is not None
    del rows[:]
    assert block() is None


def test_pointers_found_in_inference_mode_can_be_followed_by_others():
    shelf = Shelf()
    with torch.inference_mode():
        rows = [shelf.keep_pointer(torch.ones(1, 2))]
    rows.append(shelf.keep_pointer(torch.zeros(1, 2)))
    assert torch.cat([row.tensor for row in rows]).tolist() == [[1, 1], [0, 0]]
    assert rows[0].block is rows[1].block
