"""video.npz: the tokenizer over space and time."""

import torch

from dart.official import our_name
from dart.paper.video import VideoTokenizer

from .goldens import both_precisions, check, entry_names, load, parameters, picture, tensor

INPUTS = {"T", "N", "R", "pos_embed", "time_embed", "cls_token"}


@both_precisions
@torch.no_grad()
def test_video(dtype):
    golden = load("video.npz")
    num_frames, budget = int(golden["T"]), int(golden["N"])
    tables = [tensor(golden[name], dtype) for name in ("pos_embed", "time_embed", "cls_token")]
    embed = VideoTokenizer(num_frames, budget, tables[0].shape[-1], num_rows=int(golden["R"]))
    entries = {our_name(f"patch_embed.{name}"): value for name, value in parameters(entry_names("video")).items()}
    # The authors keep stages of the features that nobody reads.
    embed.load_state_dict({name: entries[f"patch_embed.{name}"] for name in embed.state_dict()})
    embed.to(dtype).eval()
    clips = picture((len(golden["score"]), 3, num_frames, 224, 224), 8, dtype, period=224)
    found = embed.inspect(clips)
    ours = {"score": found.scores.flatten(1)}
    if dtype == torch.float32:
        found = embed.read(clips, tensor(golden["score"], dtype).view_as(found.scores))
    space, time = embed.carry_places(tables[0][:, 1:], found), embed.carry_times(tables[1], found)
    ours |= {"heights": found.row_heights, "edges_px": found.strip_edges}
    ours |= {"pos_resampled": space[:1], "time_resampled": time[:1]}
    ours["out"] = torch.cat([embed(clips, *tables)[:, :1], found.tokens + space + time], 1)
    check(golden, ours, INPUTS, {"edges": 0.1})
