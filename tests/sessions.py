"""What tests of video sessions do first and last: objects of a drawn clip prompted by their masks, and all tracked."""

import cv2
import numpy as np
import torch


def session(predictor, clip, obj_ids=(1,), frame_idx=0, **options):
    """A session on the clip's frames, with these objects' masks given on one of them. `options`: of `init_state`."""
    state = predictor.init_state(list(clip.frames), **options)
    for obj_id in obj_ids:
        predictor.add_new_mask(state, frame_idx, obj_id, clip.labels[frame_idx] == obj_id)
    return state


def track(predictor, state, **options):
    """Frame index -> mask logits (objects, 1, H, W). `options`: of `propagate_in_video`."""
    return {t: logits for t, _, logits in predictor.propagate_in_video(state, progress=False, **options)}


def see_discs(monkeypatch, predictor, place_of):
    """Let the network see a disc of seven low-res pixels at `place_of(frame)`, or nothing where that is None."""
    keep = type(predictor)._keep

    def kept(state, output, region=None):
        (found,) = keep(predictor, state, output, region)
        (t,) = state.features
        place, side = place_of(t), found.pred_masks.shape[-1]
        mask = np.zeros((side, side), np.uint8)
        if place is not None:
            cv2.circle(mask, place, 3, 1, -1)
        found.pred_masks = torch.from_numpy(np.where(mask, 8.0, -8.0).astype(np.float32))[None, None]
        found.object_score_logits = torch.full((1, 1), -5.0 if place is None else 5.0)
        found.ious = torch.full((1, 1), 0.9)
        return [found]

    monkeypatch.setattr(predictor, "_keep", kept)


def results_on(predictor, frames, **options):
    """A session with all of the first frame as an object, and its results by frame. `options`: of `init_state`."""
    state = predictor.init_state(frames, **options)
    predictor.add_new_mask(state, 0, 1, np.ones(frames[0].shape[:2], bool))
    return state, {result.frame: result for result in predictor.propagate_results(state, progress=False)}
