"""What tests of video sessions do first and last: objects of a drawn clip prompted by their masks, and all tracked."""


def session(predictor, clip, obj_ids=(1,), frame_idx=0, **options):
    """A session on the clip's frames, with these objects' masks given on one of them. `options`: of `init_state`."""
    state = predictor.init_state(list(clip.frames), **options)
    for obj_id in obj_ids:
        predictor.add_new_mask(state, frame_idx, obj_id, clip.labels[frame_idx] == obj_id)
    return state


def track(predictor, state, **options):
    """Frame index -> mask logits (objects, 1, H, W). `options`: of `propagate_in_video`."""
    return {t: logits for t, _, logits in predictor.propagate_in_video(state, progress=False, **options)}
