"""Models for inference whose zeros are left out: as the masked model, whatever the layout."""

import pytest
import torch
import torch.nn as nn

import wuskern as wk
from wuskern.policies import MEST
from wuskern.policies.sparse import PackedLinear, pack


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.body = nn.Conv2d(2, 8, 3), nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 32, bias=False))
        self.head = nn.Linear(32, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(self.conv(x).flatten(1).unflatten(1, (-1, 32))))


def network(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    return wk.convert(Net().to(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("given", "layout"),
    [
        (dict(), torch.sparse_csr),
        (dict(pattern="block", block=16), torch.sparse_bsr),
        (dict(pattern="block", block=2), torch.sparse_bsr),
    ],
)
def test_the_packed_model_gives_what_the_masked_one_gives(given, layout, dtype):
    net, x = network(dtype), torch.randn(3, 2, 10, 10, dtype=dtype)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    dense = ["conv", "head"] if given.get("block") == 16 else ["head"]
    policy = MEST(net, epochs=1, sparsity=0.75, dense=dense, **given)
    expected = {name: value.clone() for name, value in net.state_dict().items()}
    packed = pack(policy)
    found = {name: module.weight.layout for name, module in packed.named_modules() if isinstance(module, PackedLinear)}
    assert found == {"body.0": layout, "body.2": layout}
    assert packed.body[0].weight.values().numel() == net.body[0].weight.numel() // 4
    torch.testing.assert_close(packed(x), net(x))
    assert type(packed.conv) is type(net.conv)
    for name, value in net.state_dict().items():
        assert torch.equal(value, expected[name])
    assert not torch.equal(expected["body.0.weight"], before["body.0.weight"])


def test_a_model_that_is_itself_a_linear():
    layer = wk.convert(nn.Linear(16, 8))
    policy = MEST(layer, epochs=1, dense=())
    x = torch.randn(3, 16)
    packed = pack(policy)
    assert "in_features=16, out_features=8, layout=torch.sparse_csr" in repr(packed)
    torch.testing.assert_close(packed(x), layer(x))
    torch.testing.assert_close(packed(x[0]), layer(x[0]))
    assert packed(x.expand(2, 3, 16)).is_contiguous()
    assert packed(x[:0]).shape == (0, 8)


def test_what_has_no_kernel_is_refused_by_name():
    with pytest.raises(ValueError, match=r"body\.0: expected 2:4 on a GPU, got 2:4 on cpu"):
        pack(MEST(network(), epochs=1, pattern="2:4", dense=["conv", "head"]))
    with pytest.raises(ValueError, match=r"body\.0: expected float32 or float64 on a CPU, got torch.bfloat16"):
        pack(MEST(network(torch.bfloat16), epochs=1, dense=["conv", "head"]))
    with pytest.raises(ValueError, match="policy: expected one that masks a Linear, got none"):
        pack(MEST(network(), epochs=1, dense=["body.0", "body.2", "head"]))


@pytest.mark.gpu
def test_on_a_gpu_two_of_four_are_packed_too():
    layer = wk.convert(nn.Sequential(nn.Linear(256, 128), nn.Linear(128, 8))).cuda().half()
    policy = MEST(layer, epochs=1, pattern="2:4")
    x = torch.randn(64, 256, device="cuda", dtype=torch.half)
    torch.testing.assert_close(pack(policy)(x), layer(x), rtol=1e-2, atol=1e-2)
