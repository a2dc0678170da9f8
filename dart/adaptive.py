"""Budgets that follow the image: how much each one needs, and how a number of tokens held in all is shared out.

# B images, G_h G_w density grid, K classes, S ways of sharing

Two ways to hold a number of tokens. `share_total` holds it over a batch, exactly: what an image gets then depends on
its batch mates, as it must. `budgets_of` gives every image what a fixed rule says, whoever its mates are; `fit_scale`
chooses the rule so that the mean of other images, of a validation split, is held. Once its budget is fixed, no
image's answer depends on its batch mates (`forward_bucketed`). Values are looked at: on a GPU this waits for them.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dart.baselines.deformable import Deformation
from dart.baselines.scores import ConstantScores

SIGNALS = ("spread", "uncertainty")
LEAST_NEED = 1e-6  # of nothing one would never get more, whatever is left over
HALVINGS = 60  # of an interval of logarithms: float64 knows no finer


class Ladder(NamedTuple):
    """The budgets that there are: low, low + step, ..., high patch tokens. Few of them, for each is a forward pass."""

    low: int
    high: int
    step: int

    @property
    def rungs(self) -> tuple[int, ...]:
        return tuple(range(self.low, self.high + 1, self.step))

    def check(self) -> "Ladder":
        """Itself.

        Raises:
            ValueError: no ladder: below one token, or not whole steps from low to high.
        """
        low, high, step = self
        if low < 1 or step < 1 or high <= low or (high - low) % step:
            rule = "must be low >= 1 token, and whole steps from there to a higher high"
            raise ValueError(f"ladder = {low} to {high} by {step}: {rule}; try 16 to 64 by 8")
        return self


def spread(density: Tensor) -> Tensor:
    """On what share of the image its density lies: exp(entropy) / number of cells, (B, G_h, G_w) -> (B,) in (0, 1].

    1 where the density is uniform, 1 / cells where it is all in one cell.
    """
    mass = density.flatten(1).double()
    mass = mass / mass.sum(1, keepdim=True)
    return torch.special.entr(mass).sum(1).exp() / mass.shape[1]


def uncertainty(logits: Tensor) -> Tensor:
    """Entropy of the predicted probabilities over its maximum: (B, K) -> (B,) in [0, 1]; 0 where K is 1."""
    probabilities = logits.double().softmax(-1)
    most = torch.tensor(max(2, logits.shape[-1]), dtype=torch.float64).log()
    return (torch.special.entr(probabilities).sum(-1) / most.to(logits.device)).clamp(0, 1)


def has_density(model: Any) -> bool:
    """Whether a scorer of the model's makes a density that follows the image: of DART's, all but the constant one."""
    scorer = model.patch_embed.scorer
    return scorer is not None and not isinstance(scorer, ConstantScores | Deformation)


def measure_need(model: Any, images: Tensor, signal: str, low: int) -> Tensor:
    """How much images (B, ...) need, (B,), by one of `SIGNALS`.

    Args:
        model: With a region tokenizer; for `spread`, one that `has_density`.
        signal: "spread" of the density; or "uncertainty" of the answer with the lowest budget.
        low: That budget.

    Raises:
        ValueError: an unknown signal, or no density that follows the image.
    """
    if signal not in SIGNALS:
        raise ValueError(f"signal = {signal!r}: unknown; known: {', '.join(SIGNALS)}")
    if signal == "uncertainty":
        return uncertainty(model(images, num_patches=low))
    if not has_density(model):
        rule = "the tokenizer has no density that follows the image; DART's has, with any scorer but 'constant'"
        raise ValueError(f"signal = 'spread': {rule}; use 'uncertainty'")
    return spread(model.patch_embed.regions(images, low, None)[1])


def share_total(needs: Tensor, total: int, ladder: Ladder) -> Tensor:
    """Budgets of a batch that sum to `total`: in proportion to need, within the ladder, in whole steps.

    The real number clip(scale x need, low, high), with the scale that makes the sum right, is cut to a rung, and the
    steps left over go to the largest remainders. So budgets never fall as needs rise. Who comes first in the batch
    matters only between images of equal need.

    Args:
        needs: (B,), at least 0.
        total: Patch tokens of all B images together.

    Returns:
        (B,) int64.

    Raises:
        ValueError: a total that B images cannot have on this ladder; needs that are negative or no numbers.
    """
    steps = _count_steps(total, len(needs), ladder.check())
    order = needs.argsort(stable=True, descending=True)  # sums are of sorted numbers: rounding knows no batch order
    ranked = _checked(needs[order])
    scale = _largest_scale(lambda s: float(_shares(ranked, s, ladder).sum()) <= total, ranked, ladder)
    exact = (_shares(ranked, scale, ladder) - ladder.low) / ladder.step
    whole = exact.floor()
    left = steps - int(whole.sum())
    room = whole < (ladder.high - ladder.low) // ladder.step
    first = torch.where(room, exact - whole, -torch.inf).argsort(stable=True, descending=True)
    whole[first[:left]] += 1
    budgets = torch.empty_like(order)
    budgets[order] = ladder.low + ladder.step * whole.long()
    return budgets


def budgets_of(needs: Tensor, scale: float, ladder: Ladder) -> Tensor:
    """What a rule gives images: the rung nearest to scale x need, each by itself. Needs (B,) -> (B,) int64."""
    exact = (_shares(_checked(needs), scale, ladder.check()) - ladder.low) / ladder.step
    return ladder.low + ladder.step * exact.round().long()


def fit_scale(needs: Tensor, mean_budget: float, ladder: Ladder) -> float:
    """The largest scale with which `budgets_of` gives these images at most `mean_budget` tokens on average.

    Raises:
        ValueError: a mean off the ladder, no images, or needs that are negative or no numbers.
    """
    low, high, _ = ladder.check()
    ranked = _checked(needs).sort(descending=True).values
    if not low <= mean_budget <= high:
        raise ValueError(f"mean_budget = {mean_budget}: must be from {low} to {high}, the ladder's ends")
    if not len(ranked):
        raise ValueError("needs = (0,): no images to fit a rule to")
    most = mean_budget * len(ranked)
    return _largest_scale(lambda s: int(budgets_of(ranked, s, ladder).sum()) <= most, ranked, ladder)


def forward_bucketed(model: Callable[..., Any], images: Tensor, budgets: Tensor) -> Tensor:
    """The model's answers, each image read with its own budget: one forward pass for each budget that occurs.

    Args:
        model: Takes images and `num_patches`; in evaluation mode and invariant, so that bucket mates do not matter.
        images: (B, ...).
        budgets: (B,) int64; or (S, B) for S ways of sharing at once, where an image is read once per budget.

    Returns:
        (B, K) logits, or (S, B, K).

    Raises:
        ValueError: budgets of another shape, or none.
    """
    if budgets.ndim not in (1, 2) or budgets.shape[-1] != len(images) or not budgets.numel():
        raise ValueError(f"budgets = {tuple(budgets.shape)}: must be one for each of the {len(images)} images")
    answers: Tensor | None = None
    for budget in budgets.unique().tolist():
        asked = budgets == budget
        mine = (asked if asked.ndim == 1 else asked.any(0)).nonzero().squeeze(1)
        found = model(images[mine], num_patches=budget)
        if answers is None:
            answers = found.new_empty(*budgets.shape, *found.shape[1:])
        whole = found.new_empty(len(images), *found.shape[1:])
        whole[mine] = found
        answers[asked] = whole.expand(answers.shape)[asked]
    assert answers is not None
    return answers


def _shares(needs: Tensor, scale: float, ladder: Ladder) -> Tensor:
    """Tokens as real numbers: (B,) float64."""
    return (needs * scale).clamp(ladder.low, ladder.high)


def _largest_scale(allowed: Callable[[float], bool], ranked: Tensor, ladder: Ladder) -> float:
    """The largest scale that is allowed, to the last bits, if a smaller one always is; all get `low` with the least."""
    if not len(ranked):
        return 1.0
    bounds = torch.tensor([ladder.low / float(ranked[0]), 2 * ladder.high / float(ranked[-1])], dtype=torch.float64)
    low, high = bounds.log().tolist()
    low -= 1.0  # clearly below
    if allowed(_exp(high)):
        return _exp(high)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if allowed(_exp(middle)) else (low, middle)
    return _exp(low)


def _exp(x: float) -> float:
    return float(torch.tensor(x, dtype=torch.float64).exp())


def _checked(needs: Tensor) -> Tensor:
    """Needs (B,) in float64, none of them quite 0."""
    if needs.ndim != 1 or not bool((needs.isfinite() & (needs >= 0)).all()):
        raise ValueError(f"needs = {tuple(needs.shape)}: must be numbers of at least 0, one for each image")
    return needs.double().clamp(min=LEAST_NEED)


def _count_steps(total: int, num_images: int, ladder: Ladder) -> int:
    """How many steps above the lowest rung a total is; refuses one that is none."""
    low, high, step = ladder
    above = total - num_images * low
    if above % step or not 0 <= above <= num_images * (high - low):
        near = num_images * low + min(max(0, round(above / step)), num_images * (high - low) // step) * step
        rule = f"not the sum of {num_images} budgets from {low} to {high} in steps of {step}"
        raise ValueError(f"total = {total}: {rule}; try {near}")
    return above // step
