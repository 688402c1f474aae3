"""Drawn by hypothesis."""

import torch
from hypothesis import strategies as st


@st.composite
def strided_gradients(draw, dtypes: list[torch.dtype]) -> tuple[torch.Tensor, int]:
    """A random tensor, its dimensions in a random order in memory, some of them sliced; and the channels' dimension."""
    sizes = draw(st.lists(st.integers(1, 9), min_size=1, max_size=5))
    dim = draw(st.integers(-len(sizes), len(sizes) - 1))
    sizes[dim] = draw(st.integers(1, 70))
    order = draw(st.permutations(range(len(sizes))))
    steps = draw(st.lists(st.integers(1, 2), min_size=len(sizes), max_size=len(sizes)))
    dtype = draw(st.sampled_from(dtypes))
    torch.manual_seed(draw(st.integers(0, 99)))
    base = torch.randn([sizes[d] * steps[d] for d in order], dtype=torch.float64).to(dtype)
    dy = base.permute([order.index(d) for d in range(len(sizes))])[tuple(slice(None, None, s) for s in steps)]
    assert list(dy.shape) == sizes
    return dy, dim
