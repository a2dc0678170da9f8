"""Counted cost equals the formula; measured speed is taken in turns and recorded whole."""

import timm
import torch
from torch import nn

from dart.cost import count_macs
from pipeline.benchmark import architectures, benchmark, count_cost, measure_speeds
from pipeline.config import Trial, load_suite
from pipeline.sweep.plan import plan_experiments, plan_sweep


def vit_macs(tokens: int, width: int, depth: int, mlp_ratio: float) -> int:
    """Blocks: qkv, both attention products, projection, MLP."""
    linear = tokens * width * width * (3 + 1 + 2 * mlp_ratio)
    return int(depth * (linear + 2 * tokens * tokens * width))


def test_timm_vit_by_hand() -> None:
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=64, embed_dim=48, depth=2, num_heads=3, num_classes=7
    ).eval()
    tokens, width = 16 + 1, 48
    expected = 16 * (16 * 16 * 3) * width + vit_macs(tokens, width, 2, 4.0) + width * 7
    assert count_macs(model, (1, 3, 64, 64)) == expected


def test_macs_are_per_image() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.Flatten(), nn.Linear(8 * 4 * 4, 5))
    one = count_macs(model, (1, 3, 8, 8))
    assert one == 8 * 3 * 9 * 4 * 4 + 8 * 4 * 4 * 5
    assert count_macs(model, (3, 3, 8, 8)) == 3 * one


def trial_of(tokenizer: str) -> Trial:
    suite = load_suite("digits")
    return next(trial for trial in plan_experiments(suite) if trial.name == f"{tokenizer}-36")


def test_uniform_by_hand_and_dart_a_scorer_more() -> None:
    tokens, width, pixels = 36, 64, 8 * 8
    embed = tokens * pixels * width
    position = tokens * (36 * width + width * width)
    expected = embed + position + vit_macs(tokens, width, 3, 2.0) + width * 10
    uniform, dart = count_cost(trial_of("uniform"), 10), count_cost(trial_of("dart"), 10)
    assert uniform.macs == expected
    assert 1 < dart.macs / uniform.macs < 1.25
    assert dart.params > uniform.params == sum(p.numel() for p in model_of("uniform").parameters())


def model_of(tokenizer: str) -> nn.Module:
    from pipeline.model import build_model

    return build_model(trial_of(tokenizer), 10)


def test_models_take_turns() -> None:
    order: list[str] = []
    batch = torch.zeros(4, 1)
    models = [lambda x: order.append("a"), lambda x: order.append("b")]
    speeds = measure_speeds(models, [batch, batch], rounds=3)
    assert order == ["a", "b"] * 4  # one warm-up and three rounds
    for speed in speeds:
        assert 0 < speed.min <= speed.q25 <= speed.median <= speed.q75


def test_each_architecture_once_in_plan_order() -> None:
    suite = load_suite("digits")
    trials = plan_experiments(suite) + plan_sweep(suite)
    chosen = architectures(trials)
    assert [trial.name for trial in chosen[:3]] == ["uniform-36", "uniform-64", "dart-36"]
    distinct = {str(trial.architecture()) for trial in trials}
    assert len(chosen) == len(distinct)


def test_the_record_is_whole() -> None:
    result = benchmark([trial_of("uniform"), trial_of("dart"), trial_of("dart")], 10, batch_size=2, rounds=2)
    assert [model["tokenizer"]["name"] for model in result["models"]] == ["uniform", "dart"]
    for model in result["models"]:
        assert model["macs"] > 0
        assert model["images_per_s"]["median"] > 0
    assert {"cpu", "threads", "device"} <= result["hardware"].keys()
    assert "torch" in result["versions"]
    assert result["counter"]["counts"]
