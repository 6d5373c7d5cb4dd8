"""Frame numbers in runs, beside a plain set of them."""

import random

import pytest

from sam2.modeling.frame_spans import FrameSpans


def spans_of(frames):
    spans = FrameSpans()
    for t in frames:
        spans.add(t)
    return spans


@pytest.mark.parametrize("seed", range(60))
def test_it_is_a_set(seed):
    rng, spans, plain = random.Random(seed), FrameSpans(), set()
    for _ in range(rng.randint(0, 30)):
        t = rng.randrange(12)
        match rng.randrange(5):
            case 0:
                spans.discard(t)
                plain.discard(t)
            case 1 if rng.random() < 0.3:
                spans.discard_before(t)
                plain = {x for x in plain if x >= t}
            case _:
                spans.add(t)
                plain.add(t)
        assert list(spans) == sorted(plain)
        assert [t in spans for t in range(-1, 13)] == [t in plain for t in range(-1, 13)]
        assert bool(spans) == bool(plain)
        assert all(last + 1 < first for (_, last), (first, _) in zip(spans.spans, spans.spans[1:], strict=False))
    for reverse in (False, True):
        for t in range(-1, 13):
            on_the_way = [x for x in (t - (-k if reverse else k) for k in range(1, 40)) if x not in plain]
            assert [spans.passing(t, k, reverse) for k in range(1, 9)] == on_the_way[:8]


def test_a_long_run_is_two_numbers():
    spans = spans_of(range(10_000))
    assert spans.spans == [(0, 9_999)]
    assert spans.passing(10_000, 3, reverse=False) == -3
    assert FrameSpans(spans.spans).spans == spans.spans
