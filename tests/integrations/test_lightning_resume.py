"""Lightning: a training that goes on from any of its checkpoints ends as the one that was not stopped, bit for bit."""

from typing import Any

import pytest
import torch

import wuskern as wk
from tests.integrations import lit
from tests.policies import resumable
from tests.policies.test_resume import same
from wuskern.integrations.lightning import WuskernCallback

pytestmark = [pytest.mark.more, pytest.mark.usefixtures("one_thread")]
EPOCHS, RESUMED = 7, (2, 4)


def training(name: str) -> tuple[Any, WuskernCallback, Any]:
    """The module, the callback and the data of a method."""
    method = resumable.METHODS[name]
    torch.manual_seed(3)
    module = lit.Lit(wk.convert(method.model()), method.optimizer)

    def recipe(model: Any, optimizer: Any) -> Any:
        return method.make(model.net, optimizer)

    chosen: Any = recipe
    if method.sieve:
        module.sampler = wk.policies.SievingSampler(len(resumable.IMAGES), keep=0.7, rate=0.5, interval=1)
    if name == "SievingSampler":
        chosen = "dense"
    if name in ("SpFDE", "MeSimp, smaller"):  # has the sampler of the data; makes the module smaller
        chosen = method.make(module.net, None)
        module.sampler = getattr(chosen, "sampler", None)
    data = lit.loader(resumable.IMAGES, resumable.LABELS, module.sampler)
    return module, WuskernCallback(chosen, "accuracy"), data


def ends(name: str, folder: Any, resume: Any = None, **when: Any) -> dict[str, Any]:
    module, callback, data = training(name)
    kept = lit.L.callbacks.ModelCheckpoint(folder, filename="{epoch}", save_top_k=-1, **when)
    given = dict(max_epochs=EPOCHS, accumulate_grad_batches=2, enable_checkpointing=True)
    trainer = lit.fit(module, callback, kept, data=data, resume=resume, **given)
    state = {"model": module.state_dict(), "optimizer": trainer.optimizers[0].state_dict(), "callback": callback.state_dict()}
    return state | {"epoch": trainer.current_epoch, "step": trainer.global_step}


@pytest.mark.parametrize("name", resumable.METHODS)
def test_resumed_it_ends_as_it_would_have(name: str, tmp_path: Any) -> None:
    expected = ends(name, tmp_path)
    for epoch in RESUMED:
        found = ends(name, tmp_path, tmp_path / f"epoch={epoch}.ckpt")
        assert [key for key in expected if not same(expected[key], found[key])] == [], f"from epoch {epoch}"


@pytest.mark.parametrize(
    ("name", "when"),
    [
        ("WUS + SsProp + AutoFreeze", dict(save_on_train_epoch_end=False)),  # behind the validation: the epoch's end follows
        ("WUS + SsProp + AutoFreeze", dict(save_on_train_epoch_end=True)),
        ("ProgressiveFreezing + MeProp", dict(every_n_train_steps=3)),  # behind the last batch: no end of that epoch follows
        ("SpFDE", dict(every_n_train_steps=3)),
    ],
)
def test_each_epoch_ends_once_wherever_the_checkpoint_was_written(name: str, when: Any, tmp_path: Any) -> None:
    expected = ends(name, tmp_path, **when)
    found = ends(name, tmp_path, tmp_path / "epoch=3.ckpt", **when)
    assert [key for key in expected if not same(expected[key], found[key])] == []


def test_what_makes_the_module_smaller_is_made_of_the_whole_one(tmp_path: Any) -> None:
    ends("MeSimp, smaller", tmp_path)
    module, _, data = training("MeSimp, smaller")
    callback = WuskernCallback("mesimp:ratio=.5:per=batch:prune=.9:cycle=2:simplify=true")
    kept = lit.L.callbacks.ModelCheckpoint(tmp_path)
    with pytest.raises(ValueError, match="policy: expected one that was made of the whole module"):
        lit.fit(module, callback, kept, data=data, resume=tmp_path / "epoch=4.ckpt", enable_checkpointing=True)
