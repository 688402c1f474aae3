"""The adapters that the library peft puts into a model: told by where the classes come from, without an import of it."""

import torch.nn as nn

INSIDE = ("base_layer", "base_model", "model", "original_module")  # what modules of peft call the user's own


def adapters_of(model: nn.Module) -> set[nn.Module]:
    """The modules that peft has added to the model, such as LoRA's matrices, prompt encoders, and copies of a head that trains
    (``modules_to_save``). What the user's model uses as well is none of them."""
    own: set[nn.Module] = set()
    waiting = [model]
    while waiting:
        module = waiting.pop()
        if module not in own:
            own.add(module)
            children = {name: child for name, child in module._modules.items() if child is not None}
            waiting += [child for name, child in children.items() if name in INSIDE or not _is_of_peft(module)]
    return set(model.modules()) - own


def _is_of_peft(module: nn.Module) -> bool:
    return any(cls.__module__.partition(".")[0] == "peft" for cls in type(module).__mro__)
