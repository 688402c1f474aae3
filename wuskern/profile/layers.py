"""What the saving of a skip is composed of: the seconds of each layer, in dense steps and in steps that skip."""

import statistics
from collections.abc import Mapping

from wuskern.modules import SkippableConv2d, SkippableLayer
from wuskern.profile.race import Race
from wuskern.profile.result import LayerTimes
from wuskern.profile.variants import DENSE_NAME, SKIP_NAME


def layer_times(layers: Mapping[str, SkippableLayer], race: Race) -> tuple[tuple[LayerTimes, ...], float | None]:
    """The times of each layer, and the seconds of a dense step outside of them; none where there was no time to measure it."""
    dense, skipped = race.of_layers[DENSE_NAME], race.of_layers[SKIP_NAME]
    if not dense or not skipped:
        return (), None
    times = []
    for name, layer in layers.items():
        forward, backward = (statistics.median(one[name][i] for one in dense) for i in range(2))
        forward_skipped, dgrad = (statistics.median(one[name][i] for one in skipped) for i in range(2))
        saved = forward + backward - forward_skipped - dgrad
        times.append(LayerTimes(name, shape(layer), layer.weight.numel(), forward, dgrad, backward - dgrad, saved))
    inside = [sum(map(sum, one.values())) for one in dense]
    return tuple(times), statistics.median(race.seconds[DENSE_NAME]) - statistics.median(inside)


def shape(layer: SkippableLayer) -> str:
    """The kind and size of a layer: equal ones do equal work on inputs of one size."""
    units = layer.units
    text = f"{units.layer} {units.inputs} -> {units.out}"
    if not isinstance(layer, SkippableConv2d):
        return text
    kernel, stride = layer.kernel_size, layer.stride
    text += f", {'x'.join(map(str, kernel))}"
    if any(s != 1 for s in stride):
        text += f", stride {stride[0] if len(set(stride)) == 1 else 'x'.join(map(str, stride))}"
    return text + (f", {units.groups} groups" if units.groups > 1 else "")
