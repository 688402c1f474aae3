"""Random plans of a layer, and the part of dY that each lets into each gradient, by plain PyTorch in float64."""

import random
from dataclasses import dataclass

import torch
from torch import Tensor

import wuskern as wk
from wuskern.choices import Units
from wuskern.tokens import draw as draw_tokens


@dataclass(frozen=True)
class Passed:
    """dY in float64 as it goes into the gradients of x, weight and bias; None where there is no such gradient."""

    x: Tensor
    weight: Tensor | None
    bias: Tensor | None
    is_dense: bool = False  # all of it goes everywhere
    columns: Tensor | None = None  # 1 at the weights whose columns are chosen, 0 elsewhere: [out, in / groups]; None: all


# ---- any plan -------------------------------------------------------------------------------------------------------


def draw(
    r: random.Random, units: Units, by_chance: bool = True, by_tokens: bool = True, by_input: bool = True, sparse: bool = True
) -> wk.Plan:
    """One that a layer with these units can have. ``by_chance``: it may choose by torch's generator. ``by_tokens``: it may
    choose tokens. ``by_input``: it may choose columns by the input, of which each process has another. ``sparse``: it may ask
    for the sparse form."""
    skip = r.random() < 0.25
    makers = [_top, _top, _fixed, _fixed, *([_per_example] if units.layer == "Linear" else [])]
    rows = r.choice(makers)(r, units, by_chance, sparse) if r.random() < 0.75 else None
    tokens = _tokens(r, by_chance) if by_tokens and r.random() < 0.35 else None
    columns = _columns(r, units, by_input) if r.random() < 0.35 and getattr(rows, "sparse", None) is not True else None
    return wk.Plan(skip, rows, columns, tokens)


def _amount(r: random.Random, most: int, unit: int = 1) -> dict[str, float]:
    return {"ratio": r.uniform(0.01, 1)} if r.random() < 0.5 else {"k": unit * r.randint(1, most // unit)}


def _form(r: random.Random, sparse: bool) -> dict[str, object]:
    forms = [None, False, True, True] if sparse else [None, False]
    return {"scope": r.choice(["weight", "both"]), "bias": r.choice(["dense", "rows"]), "sparse": r.choice(forms)}


def _top(r: random.Random, units: Units, by_chance: bool, sparse: bool) -> wk.TopK:
    each = units.out // units.groups
    block = r.choice([1, 1, *(b for b in range(1, each + 1) if each % b == 0)])
    score = r.choice(["l1", "l2", *(["random"] if by_chance else [])])
    return wk.TopK(**_amount(r, units.out, block * units.groups), score=score, block=block, **_form(r, sparse))


def _fixed(r: random.Random, units: Units, by_chance: bool, sparse: bool) -> wk.Rows:
    each = units.out // units.groups
    k = r.randint(1, each)
    return wk.Rows([g * each + row for g in range(units.groups) for row in r.sample(range(each), k)], **_form(r, sparse))


def _per_example(r: random.Random, units: Units, by_chance: bool, sparse: bool) -> wk.PerExample:
    return wk.PerExample(**_amount(r, units.out))


def _columns(r: random.Random, units: Units, by_input: bool) -> wk.Columns | wk.TopColumns | None:
    each = units.inputs // units.groups
    if units.groups > 1 and each == 1:
        return None  # depthwise
    if r.random() < 0.5:
        k = r.randint(1, each)
        return wk.Columns([g * each + column for g in range(units.groups) for column in r.sample(range(each), k)])
    block = r.choice([1, 1, *(b for b in range(1, each + 1) if each % b == 0)])
    return wk.TopColumns(
        **_amount(r, units.inputs, block * units.groups),
        score=r.choice(["input", "weight"] if by_input else ["weight"]),
        block=block,
    )


def _tokens(r: random.Random, by_chance: bool) -> wk.Tokens:
    return wk.Tokens(**_amount(r, 8), pick=r.choice(["top", "top", "crs", "wta"]) if by_chance else "top")


# ---- what it means --------------------------------------------------------------------------------------------------


def passed(plan: wk.Plan, units: Units, dy: Tensor, x: Tensor, seed: int, weight: Tensor) -> Passed:
    """``x``: as the products see it, padded. ``seed``: of torch's generator as the backward begins. Where the numbers are
    eighths and not large, scores and norms are exact in float32, and a choice by them has no second answer."""
    torch.default_generator.manual_seed(seed)
    dim, dy, x = -1 if units.layer == "Linear" else -3, dy.double(), x.double()
    if plan.skip:
        return Passed(dy, None, dy)
    to_x = to_weight = to_bias = sized = dy
    rows = plan.rows
    if rows is not None and rows.count(units.out, units.groups) < units.out:
        if isinstance(rows, wk.PerExample):
            to_x = to_weight = sized = largest_of_each(dy, rows.count(units.out))
        else:
            chosen = chosen_rows(rows, dy, dim, units).view(-1, *[1] * (-dim - 1))
            to_weight = dy * chosen
            to_x = to_weight if rows.scope == "both" else dy
            to_bias = to_weight if rows.bias == "rows" else dy
    columns = None
    if plan.columns is not None and plan.columns.count(units.inputs, units.groups) < units.inputs:
        chosen = chosen_columns(plan.columns, x, weight, dim, units)
        columns = chosen.view(units.groups, 1, -1).expand(-1, units.out // units.groups, -1).flatten(0, 1)
        x = x * chosen.view(-1, *[1] * (-dim - 1))  # tokens are chosen by what is kept of it
    n = _of_tokens(x, dim).shape[0]
    if plan.tokens is not None and plan.tokens.count(n) < n:
        weights = token_weights(plan.tokens, _of_tokens(sized, dim), _of_tokens(x, dim))
        to_weight = (_of_tokens(to_weight, dim) * weights.view(-1, *[1] * (-dim))).view_as(dy)
    return Passed(to_x, to_weight, to_bias, is_dense=to_x is to_weight is to_bias is dy and columns is None, columns=columns)


def _of_tokens(t: Tensor, dim: int) -> Tensor:
    """``[tokens, ...]``: all leading dimensions of a Linear's, the images of a Conv2d's."""
    return t.reshape(t.shape[:dim].numel(), *t.shape[dim:])


def chosen_rows(rows: wk.TopK | wk.Rows, dy: Tensor, dim: int, units: Units) -> Tensor:
    """``[out]``: 1 at the chosen rows, 0 elsewhere."""
    if isinstance(rows, wk.Rows):
        return torch.zeros(units.out, dtype=torch.float64).index_fill_(0, rows.index, 1)
    if rows.score == "random":
        scores = torch.rand(units.out)
    else:
        scores = (dy.abs() if rows.score == "l1" else dy.square()).movedim(dim, 0)[..., None].flatten(1).sum(1)
    return _largest_blocks(scores, rows.count(units.out, units.groups), rows.block, units.groups)


def chosen_columns(columns: wk.Columns | wk.TopColumns, x: Tensor, weight: Tensor, dim: int, units: Units) -> Tensor:
    """``[inputs]``: 1 at the chosen columns, 0 elsewhere. Random ones are drawn in forward, and are not for here."""
    if isinstance(columns, wk.Columns):
        return torch.zeros(units.inputs, dtype=torch.float64).index_fill_(0, columns.index, 1)
    if columns.score == "input":
        scores = x.square().movedim(dim, 0)[..., None].flatten(1).sum(1)
    else:
        grouped = weight.double().square().view(units.groups, -1, *weight.shape[1:])
        scores = grouped.transpose(1, 2).flatten(0, 1).flatten(1).sum(1)
    return _largest_blocks(scores, columns.count(units.inputs, units.groups), columns.block, units.groups)


def _largest_blocks(scores: Tensor, k: int, block: int, groups: int) -> Tensor:
    """1 at the units of the blocks with the largest scores, as many of each group, 0 elsewhere; of equal ones the lower."""
    blocks = scores.view(groups, -1, block).sum(-1)
    best = blocks.sort(dim=1, descending=True, stable=True).indices[:, : k // (groups * block)]
    return torch.zeros_like(blocks, dtype=torch.float64).scatter_(1, best, 1).flatten().repeat_interleave(block)


def largest_of_each(dy: Tensor, k: int) -> Tensor:
    """dy, zero but for the k largest sizes of each example; of equal ones the lower index."""
    best = dy.abs().sort(dim=-1, descending=True, stable=True).indices[..., :k]
    return dy * torch.zeros_like(dy).scatter_(-1, best, 1)


def token_weights(tokens: wk.Tokens, dy: Tensor, x: Tensor) -> Tensor:
    """``[n]``: how much of each token is summed. Draws are the layer's own, whose chances have tests of their own."""
    if tokens.pick != "top":
        drawn = draw_tokens(tokens, dy, x)
        return torch.zeros(len(x), dtype=torch.float64).index_add_(0, drawn.index, drawn.scale)
    sizes = dy.flatten(1).square().sum(1).sqrt() * x.flatten(1).square().sum(1).sqrt()
    best = sizes.sort(descending=True, stable=True).indices[: tokens.count(len(x))]
    return torch.zeros(len(x), dtype=torch.float64).index_fill_(0, best, 1)
