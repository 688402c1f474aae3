"""Networks of torchvision and timm, where they are installed, and this project's beside them."""

import pytest
import torch
from torch import nn

import wuskern as wk
from wuskern.train.models import MODELS, build


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def timm(torchvision):
    return pytest.importorskip("timm")


def parameters(model):
    return sum(p.numel() for p in model.parameters())


def assert_equal_outputs(ours, theirs, x, parameters=None):
    """In float64, with our parameters, in their order, put into theirs; in training, as each batch norm in evaluation would
    make what a new network computes smaller, until its biases are all that is left. Nothing is left out at random."""
    ours, theirs = ours.double().train(), theirs.double().train()
    for module in (*ours.modules(), *theirs.modules()):
        if hasattr(module, "p"):
            module.p = 0
    with torch.no_grad():
        for of_ours, of_theirs in zip(parameters or ours.parameters(), theirs.parameters(), strict=True):
            of_theirs.copy_(of_ours.view_as(of_theirs))
        torch.testing.assert_close(ours(x.double()), theirs(x.double()))


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_resnets_behind_their_stems_are_torchvisions(torchvision, name):
    theirs = torchvision.models.get_model(name, weights=None, num_classes=10)
    trunk = nn.Sequential(*list(theirs.children())[4:-1], nn.Flatten(), theirs.fc)
    assert_equal_outputs(MODELS[name](3, (32, 32), 10, 1.0)[3:], trunk, torch.randn(4, 64, 8, 8))


def test_efficientnet_is_torchvisions_but_for_the_stride_of_its_stem(torchvision):
    theirs = torchvision.models.efficientnet_b0(weights=None, num_classes=10)
    theirs.features[0][0].stride = (1, 1)
    assert_equal_outputs(MODELS["efficientnet"](3, (32, 32), 10, 1.0), theirs, torch.randn(4, 3, 8, 8))


def test_vit_is_timms(timm):
    theirs = timm.models.vision_transformer.VisionTransformer(
        img_size=32, patch_size=4, embed_dim=192, depth=6, num_heads=3, num_classes=10, norm_layer=nn.LayerNorm
    )
    ours = MODELS["vit"](3, (32, 32), 10, 1.0)
    first, weight, bias, position, *others = ours.parameters()
    assert_equal_outputs(ours, theirs, torch.randn(2, 3, 32, 32), [first, position, weight, bias, *others])


def test_a_model_of_torchvision_has_its_published_size(torchvision):
    model = build("torchvision/resnet50", 3, (32, 32), 1000, 1.0)
    assert parameters(model) == 25_557_032
    assert model.training


def test_a_model_of_timm_takes_any_channels(timm):
    model = build("timm/resnet18", 1, (32, 32), 7, 1.0)
    assert model(torch.randn(2, 1, 32, 32)).shape == (2, 7)
    assert parameters(model) == 11_689_512 - 64 * 7 * 7 * 2 - 513 * (1000 - 7)  # two channels, 993 classes less


def test_a_model_of_torchvision_skips_and_has_chosen_rows(torchvision):
    model = wk.convert(build("torchvision/resnet18", 3, (32, 32), 10, 1))
    wk.policies.MeProp(model, ratio=0.25)
    model(torch.randn(2, 3, 32, 32)).sum().backward()
    assert model.layer1[0].conv1.weight.grad.flatten(1).any(1).sum() == 16
    wk.set_skip(model, True)
    model.zero_grad()
    model(torch.randn(2, 3, 32, 32)).sum().backward()
    assert model.layer1[0].conv1.weight.grad is None


@pytest.mark.parametrize(
    ("name", "channels", "size", "message"),
    [
        (
            "resnet51",
            3,
            32,
            "--model: expected torchvision/ and a name of torchvision.models for classification, got .*resnet51",
        ),
        ("fcn_resnet50", 3, 32, "--model: expected torchvision/ and a name of torchvision.models for classification"),
        ("googlenet", 3, 32, "--model: expected one with a single output, got torchvision/googlenet"),
        ("resnet18", 1, 32, "--model: expected images of 3 channels for torchvision/resnet18, got 1"),
        (
            "squeezenet1_1",
            3,
            4,
            r"--model: expected one for images of \(3, 4, 4\), got torchvision/squeezenet1_1 \(.*too small",
        ),
    ],
)
def test_what_torchvision_does_not_have_or_take(torchvision, name, channels, size, message):
    with pytest.raises(ValueError, match=message):
        build(f"torchvision/{name}", channels, (size, size), 10, 1.0)


def test_what_timm_does_not_have_or_take(timm):
    with pytest.raises(ValueError, match=r"--model: expected timm/ and a name of timm.list_models\(\), got timm/resnet51"):
        build("timm/resnet51", 3, (32, 32), 10, 1.0)
    with pytest.raises(ValueError, match=r"--model: expected one for images of \(3, 32, 32\), got timm/vit_tiny_patch16_224"):
        build("timm/vit_tiny_patch16_224", 3, (32, 32), 10, 1.0)


@pytest.mark.parametrize("package", ["torchvision", "timm"])
def test_without_the_package(without_torchvision, package):
    for error in (ImportError(f"No module named '{package}'"), RuntimeError("operator nms does not exist")):
        without_torchvision(error)
        with pytest.raises(ValueError, match=rf"--model: {package} has to be installed, one that fits this torch \({error}\)"):
            build(f"{package}/resnet18", 3, (32, 32), 10, 1.0)


def test_a_full_sized_network_has_one_width_and_is_for_images():
    with pytest.raises(ValueError, match=r"--width: expected 1 with torchvision/resnet18, which has one width, got 0.5"):
        build("torchvision/resnet18", 3, (32, 32), 10, 0.5)
    with pytest.raises(ValueError, match=r"--model: expected one for text \(gpt\), got 'timm/resnet18'"):
        build("timm/resnet18", 64, (), 256, 1.0)
    with pytest.raises(ValueError, match=r"--model: expected one of mlp, .*, torchvision/NAME, timm/NAME, got 'keras/vgg16'"):
        build("keras/vgg16", 3, (32, 32), 10, 1.0)
