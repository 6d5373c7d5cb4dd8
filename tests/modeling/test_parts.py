"""Single layers, against hand-computed answers."""

import math

import pytest
import torch

from sam2.modeling.backbones.hieradet import Hiera
from sam2.modeling.backbones.utils import window_partition, window_unpartition
from sam2.modeling.memory_attention import MemoryAttentionLayer
from sam2.modeling.position_encoding import PositionEmbeddingSine, apply_rotary_enc, compute_axial_cis
from sam2.modeling.sam.mask_decoder import MaskDecoder
from sam2.modeling.sam.prompt_encoder import PromptEncoder
from sam2.modeling.sam.transformer import RoPEAttention, TwoWayTransformer
from sam2.modeling.sam2_utils import (
    MLP,
    DropPath,
    LayerNorm2d,
    get_activation_fn,
    get_next_point,
    mask_to_box,
    sample_box_points,
    sample_random_points_from_errors,
)


@pytest.mark.parametrize("size", [(8, 8), (9, 13), (4, 21)])
def test_windows_put_back_together_are_the_map(size):
    x = torch.randn(2, *size, 3)
    windows, padded = window_partition(x, 4)
    assert windows.shape[1:] == (4, 4, 3)
    torch.testing.assert_close(window_unpartition(windows, 4, padded, size), x)


def test_layer_norm_works_on_the_channels_of_each_pixel():
    x = torch.tensor([[1.0, 5.0], [3.0, 5.0]]).view(1, 2, 1, 2)
    assert LayerNorm2d(2)(x).flatten().tolist() == pytest.approx([-1.0, 0.0, 1.0, 0.0], abs=1e-5)


def test_mlp_ends_with_a_sigmoid_only_if_asked():
    mlp = MLP(2, 4, 1, 3, sigmoid_output=True)
    x = torch.randn(5, 2)
    squashed = mlp(x)
    mlp.sigmoid_output = False
    torch.testing.assert_close(squashed, mlp(x).sigmoid())


def test_drop_path_keeps_the_mean_and_rests_in_evaluation():
    drop = DropPath(0.25).train()
    x = torch.ones(4000, 1)
    assert drop(x).unique().tolist() == [0.0, pytest.approx(1 / 0.75)]
    assert drop(x).mean().item() == pytest.approx(1.0, abs=0.05)
    assert drop.eval()(x) is x


def test_unknown_activation_is_refused():
    with pytest.raises(ValueError, match="relu, gelu, glu; got 'swish'"):
        get_activation_fn("swish")


def test_rotary_encoding_depends_on_relative_places_only():
    q, k = torch.randn(1, 1, 1, 8), torch.randn(1, 1, 1, 8)
    table = compute_axial_cis(8, end_x=4, end_y=4)

    def score(a: int, b: int) -> float:
        turned_q, _ = apply_rotary_enc(q, q, table[a : a + 1])
        turned_k, _ = apply_rotary_enc(k, k, table[b : b + 1])
        return (turned_q * turned_k).sum().item()

    assert score(5, 0) == pytest.approx(score(15, 10), abs=1e-4)  # one row and one column apart, both times
    assert score(5, 0) != pytest.approx(score(6, 0), abs=1e-4)


def test_repeated_keys_are_turned_grid_by_grid():
    q, k = torch.randn(1, 1, 4, 8), torch.randn(1, 1, 8, 8)
    table = compute_axial_cis(8, end_x=2, end_y=2)
    _, turned = apply_rotary_enc(q, k, table, repeat_freqs_k=True)
    _, second = apply_rotary_enc(q, k[:, :, 4:], table)
    torch.testing.assert_close(turned[:, :, 4:], second)


def test_sine_encoding_starts_with_the_rows_waves():
    encoding = PositionEmbeddingSine(4, normalize=True)(torch.zeros(2, 1, 2, 3))
    assert encoding.shape == (2, 4, 2, 3)
    full_turn = 2 * math.pi
    assert encoding[0, 0, 0, 0].item() == pytest.approx(math.sin(full_turn / 2), abs=1e-5)  # row 1 of 2
    assert encoding[0, 2, 0, 0].item() == pytest.approx(math.sin(full_turn / 3), abs=1e-5)  # column 1 of 3
    assert encoding[0, 3, 0, 0].item() == pytest.approx(math.cos(full_turn / 3), abs=1e-5)


def masks() -> tuple[torch.Tensor, torch.Tensor]:
    truth, prediction = torch.zeros(1, 1, 20, 30, dtype=torch.bool), torch.zeros(1, 1, 20, 30, dtype=torch.bool)
    truth[..., 4:15, 3:14] = True
    prediction[..., 0:3, 20:24] = True
    return truth, prediction


def test_the_central_click_is_the_middle_of_the_larger_error():
    truth, prediction = masks()
    points, labels = get_next_point(truth, prediction, "center")
    assert (points.tolist(), labels.tolist()) == ([[[8.0, 9.0]]], [[1]])
    points, labels = get_next_point(prediction, truth, "center")
    assert (points.tolist(), labels.tolist()) == ([[[8.0, 9.0]]], [[0]])


def test_random_clicks_fall_on_errors_and_are_labelled_by_their_kind():
    truth, prediction = masks()
    points, labels = sample_random_points_from_errors(truth, prediction, num_pt=40)
    for (x, y), label in zip(points[0].long().tolist(), labels[0].tolist(), strict=True):
        assert (truth if label == 1 else prediction)[0, 0, y, x]
    points, labels = sample_random_points_from_errors(truth, truth, num_pt=10)
    assert labels.unique().tolist() == [0]
    assert not any(truth[0, 0, y, x] for x, y in points[0].long().tolist())


def test_boxes_of_masks_are_here_too():
    truth, _ = masks()
    assert mask_to_box(truth).tolist() == [[[3, 4, 13, 14]]]


def test_box_prompts_are_the_corners_of_the_mask_with_bounded_noise():
    truth, _ = masks()
    exact, labels = sample_box_points(truth, noise=0.0)
    assert exact.tolist() == [[[3.0, 4.0], [13.0, 14.0]]]
    assert labels.tolist() == [[2, 3]]
    torch.manual_seed(0)
    for _ in range(20):
        noisy, _ = sample_box_points(truth, noise=0.1)
        assert (noisy - exact).abs().max() <= 1.0


@torch.no_grad()
def test_the_trunk_keeps_its_position_map_only_while_it_is_right():
    trunk = Hiera(embed_dim=8, num_heads=1, stages=(1, 1, 1, 1), global_att_blocks=())
    first = trunk._get_pos_embed((16, 16))
    assert trunk._get_pos_embed((16, 16)) is first
    assert trunk._get_pos_embed((8, 16)).shape == (1, 8, 16, 8)
    for change in (
        lambda: trunk.pos_embed.data.fill_(1.0),  # unnoticed by autograd, as fused optimisers are
        lambda: trunk.pos_embed_window.fill_(2.0),
        lambda: setattr(trunk, "pos_embed", torch.nn.Parameter(torch.full_like(trunk.pos_embed, 3.0))),
        lambda: trunk.to(torch.float64),
    ):
        before = trunk._get_pos_embed((16, 16))
        change()
        after = trunk._get_pos_embed((16, 16))
        assert after.dtype != before.dtype or not torch.equal(after, before)
        assert torch.equal(after, trunk._make_pos_embed((16, 16)))
    with torch.enable_grad():
        assert trunk._get_pos_embed((16, 16)).requires_grad


# What exporters and encoders of other prompts call one by one, under upstream's names


@torch.no_grad()
def test_the_prompt_encoder_is_the_sum_of_its_parts():
    encoder = PromptEncoder(8, (4, 4), (64, 64), mask_in_chans=16)
    coords, labels = torch.rand(2, 3, 2) * 64, torch.tensor([[1, 0, -1], [2, 3, 1]])
    boxes, masks = torch.rand(2, 4) * 64, torch.randn(2, 1, 16, 16)
    points = (coords, labels)
    assert torch.equal(encoder(points, None, masks)[0], encoder._embed_points(coords, labels, pad=True))
    sparse, dense = encoder(points, boxes, masks)
    parts = [encoder._embed_points(coords, labels, pad=False), encoder._embed_boxes(boxes)]
    assert torch.equal(sparse, torch.cat(parts, dim=1))
    assert torch.equal(dense, encoder._embed_masks(masks))
    assert encoder._get_device().type == "cpu"
    batches = [encoder._get_batch_size(*prompts) for prompts in ((points, None, None), (None, None, masks[:1]))]
    assert batches == [2, 1] and encoder._get_batch_size(None, None, None) == 1


@torch.no_grad()
def test_a_click_can_be_encoded_from_shares_of_the_image_and_its_labels_weights():
    encoder = PromptEncoder(8, (4, 4), (64, 64), mask_in_chans=16)
    coords, labels = torch.tensor([[[10.0, 50.0], [0.0, 0.0]]]), torch.tensor([[1, -1]])
    places = encoder.pe_layer._pe_encoding((coords + 0.5) / 64)
    expected = [places[0, 0] + encoder.point_embeddings[1].weight[0], encoder.not_a_point_embed.weight[0]]
    torch.testing.assert_close(encoder._embed_points(coords, labels, pad=False)[0], torch.stack(expected))


@torch.no_grad()
def test_a_point_of_an_unknown_label_is_its_place_alone():
    encoder = PromptEncoder(8, (4, 4), (64, 64), mask_in_chans=16)
    coords, labels = torch.rand(1, 4, 2) * 64, torch.tensor([[-9, -2, 4, 90]])
    expected = encoder.pe_layer.forward_with_coords(coords + 0.5, (64, 64))
    assert torch.equal(encoder._embed_points(coords, labels, pad=False), expected)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.float32])
def test_labels_may_be_of_any_type(dtype):
    encoder = PromptEncoder(8, (4, 4), (64, 64), mask_in_chans=16)
    coords, labels = torch.rand(1, 2, 2) * 64, torch.tensor([[1, 0]])
    expected = encoder._embed_points(coords, labels, pad=True)
    assert torch.equal(encoder._embed_points(coords, labels.to(dtype), pad=True), expected)


@torch.no_grad()
def test_attention_can_be_put_together_from_its_parts():
    attention = RoPEAttention(embedding_dim=32, num_heads=2, feat_sizes=(2, 3))
    assert torch.equal(attention.freqs_cis, attention.compute_cis(end_x=2, end_y=3))
    q, k, v = torch.randn(3, 1, 6, 32)
    heads = [attention._separate_heads(x, 2) for x in (attention.q_proj(q), attention.k_proj(k), attention.v_proj(v))]
    queries, keys = apply_rotary_enc(heads[0], heads[1], attention.freqs_cis)
    read = torch.nn.functional.scaled_dot_product_attention(queries, keys, heads[2])
    assert torch.equal(attention.out_proj(attention._recombine_heads(read)), attention(q, k, v))


@torch.no_grad()
def test_a_memory_attention_layer_is_its_parts_in_a_row():
    attention = [RoPEAttention(embedding_dim=16, num_heads=1, rope_k_repeat=True) for _ in range(2)]
    layer = MemoryAttentionLayer("relu", attention[0], 16, 32, 0.0, False, True, False, attention[1])
    x, memory, position = torch.randn(1, 4, 16), torch.randn(1, 9, 16), torch.randn(1, 9, 16)
    read = layer._forward_ca(layer._forward_sa(x, x), memory, query_pos=x, pos=position, num_k_exclude_rope=1)
    hidden = layer.linear2(layer.dropout(layer.activation(layer.linear1(layer.norm3(read)))))
    assert torch.equal(read + layer.dropout3(hidden), layer(x, memory, position, x, num_k_exclude_rope=1))
    assert {layer.dropout1.p, layer.dropout2.p} == {0.0}


@torch.no_grad()
def test_all_masks_of_the_decoder_can_be_reduced_to_the_stable_or_the_best_one():
    transformer = TwoWayTransformer(depth=1, embedding_dim=32, num_heads=2, mlp_dim=8)
    decoder = MaskDecoder(transformer_dim=32, transformer=transformer, dynamic_multimask_via_stability=True).eval()
    masks = torch.zeros(2, 4, 2, 2)
    masks[0, 0], masks[0, 2], masks[1, 0] = 0.01, 3.0, 5.0
    ious = torch.tensor([[0.9, 0.1, 0.5, 0.2], [0.3, 0.9, 0.9, 0.9]])
    assert decoder._get_stability_scores(masks[:, 0]).tolist() == [0.0, 1.0]
    chosen, score = decoder._dynamic_multimask_via_stability(masks, ious)
    assert torch.equal(chosen, torch.stack([masks[0, 2:3], masks[1, :1]]))
    assert score.flatten().tolist() == pytest.approx([0.5, 0.3])
