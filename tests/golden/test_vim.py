"""vim_*.npz: the state-space classifier behind DART, its weights through the converter."""

import pytest
import torch

from dart.official import build, convert

from .goldens import both_precisions, check, entry_names, files, load, parameters, picture


@both_precisions
@pytest.mark.parametrize("file", files("vim_*.npz"))
@torch.no_grad()
def test_feature_and_logits(file, dtype):
    golden = load(file)
    shapes = entry_names(file.removesuffix(".npz"))
    # Reduced models: their width may be a published one's, their depth is not.
    depth = len({name.split(".")[1] for name in shapes if name.startswith("layers.")})
    name, kwargs, state = convert(parameters(shapes), embed_dim=shapes["cls_token"][-1], depth=depth)
    model = build(name, kwargs)
    model.load_state_dict(state, strict=True)
    model.eval().to(dtype)
    batch = len(golden["vim_logits"])
    feature = model.forward_head(model.forward_features(picture((batch, 3, 448, 448), 6, dtype)), pre_logits=True)
    check(golden, {"vim_feat": feature, "vim_logits": model.get_classifier()(feature)}, ())
