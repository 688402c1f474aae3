"""bench.finetune_step on a transformer that takes no time: each method trains what it says, and the rows say the rest."""

import pytest
import torch

from bench import finetune_step

transformers = pytest.importorskip("transformers", reason="transformers is not installed: it is in .ci/requirements.txt")
pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning"),  # of peft, by transformers
]


@pytest.fixture(autouse=True)
def small(monkeypatch):
    config = transformers.BertConfig(
        hidden_size=48, num_hidden_layers=6, num_attention_heads=2, intermediate_size=80, vocab_size=30522, num_labels=20
    )
    monkeypatch.setattr(finetune_step, "network", lambda: transformers.BertForSequenceClassification(config).train())
    monkeypatch.delitem(finetune_step.METHODS, "columns 5 %, blocks of 16")  # of layers as narrow as these, most
    monkeypatch.setattr(finetune_step, "BATCH", 2)
    monkeypatch.setattr(finetune_step, "LENGTH", 8)


def test_every_method_is_measured_against_its_peers():
    rows = finetune_step.measure(False, rounds=1)
    of = {row["method"]: row for row in rows}
    assert set(of) >= {"dense", "bias-only, stock", *finetune_step.OURS} & set(finetune_step.METHODS)
    assert of["dense"]["time_of"]["dense"] == of["dense"]["kept_of_dense"] == 1
    kept = [of[method]["state_mib"] for method in ("columns 5 %", "block of one layer", "dense")]
    assert kept == sorted(set(kept))
    content = {"rows": rows, "rounds": 1, "environment": {"processor": "p", "threads": 1, "torch": "t"}}
    assert finetune_step.render(content).count("\n| float32 |") == len(rows)


def test_a_method_that_does_not_train_what_it_says_is_found():
    variant = finetune_step.Variant("columns 5 %", autocast=False)
    for parameter in variant.model.parameters():
        parameter.requires_grad_(False)
    variant.model.classifier.bias.requires_grad_(True)
    ids, labels = torch.zeros(2, 8, dtype=torch.int64), torch.zeros(2, dtype=torch.int64)
    with pytest.raises(AssertionError, match=r"columns 5 %: 0\.0% of the weights moved"):
        finetune_step.verify(variant, ids, labels)
