"""video.npz: the tokenizer over space and time."""

import torch

from dart.paper.video import VideoTokenizer, from_official

from .goldens import both_precisions, check, entry_names, load, parameters, picture, tensor

INPUTS = {"T", "N", "R", "pos_embed", "time_embed", "cls_token"}


@both_precisions
@torch.no_grad()
def test_video(dtype):
    golden = load("video.npz")
    num_frames, budget = int(golden["T"]), int(golden["N"])
    tables = [tensor(golden[name], dtype) for name in ("pos_embed", "time_embed", "cls_token")]
    embed = VideoTokenizer(num_frames, budget, tables[0].shape[-1])
    assert embed.num_rows == int(golden["R"])
    embed.load_state_dict(from_official(parameters(entry_names("video"))))
    embed.to(dtype).eval()
    clips = picture((2, 3, num_frames, 224, 224), 8, dtype, period=224)
    found = embed.inspect(clips)
    space, time = embed.carry(tables[0][:, 1:], tables[1], found)
    ours = {"score": found.scores.flatten(1), "heights": found.row_heights, "edges_px": found.strip_edges}
    ours |= {"pos_resampled": space[:1], "time_resampled": time[:1], "out": embed(clips, *tables)}
    check(golden, ours, INPUTS, {"edges": 0.1})
