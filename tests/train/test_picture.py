"""Pictures show every point, tell all methods apart, and are whole or as they were."""

import pytest
from matplotlib.figure import Figure

from tests.train.test_summary import record
from wuskern.train import files, picture, summary

METHODS = ("dense", *(f"meprop:k={k}" for k in range(1, 13)))


@pytest.fixture
def records():
    """From chance to no error at all; those of a seed differ in how long they take, so that each has a control."""
    epochs = [[("full", 1 + i / 20, accuracy) for accuracy in (0.1, 0.5, 0.9, 1.0)] for i in range(len(METHODS))]
    return [record(method, seed, e) for seed in range(2) for method, e in zip(METHODS, epochs, strict=True)]


@pytest.fixture
def drawn(monkeypatch):
    """The figures, as they are written."""
    found, save = [], Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda figure, *args, **kwargs: (found.append(figure), save(figure, *args, **kwargs))
    )
    return found


def curves(figure):
    return [(axes, line) for axes in figure.axes for line in axes.lines if line.get_transform() == axes.transData]


def test_no_point_is_outside_and_no_two_methods_look_the_same(tmp_path, records, drawn):
    picture.draw(tmp_path / "a.png", "a", records)
    picture.draw_front(tmp_path / "f.png", "f", summary.summarise(records, 100))
    for figure in drawn:
        for axes, line in curves(figure):
            assert all(axes.viewLim.padded(1e-6).contains(*point) for point in line.get_xydata())
    for axes in drawn[0].axes:
        looks = [
            (line.get_color(), line.get_marker(), line.get_linestyle()) for _, line in curves(drawn[0]) if line.axes is axes
        ]
        named = [look for look, line in zip(looks, axes.lines, strict=True) if not line.get_label().startswith("_")]
        assert len(named) == len(set(named)) >= len(METHODS)
    assert len({tuple(picture.style(i).values()) for i in range(80)}) == 80


def test_a_legend_covers_no_axes(tmp_path, records, drawn):
    picture.draw(tmp_path / "a.png", "a", records)
    (legend,) = drawn[0].legends
    panels = [axes.get_window_extent() for axes in drawn[0].axes]
    assert not any(legend.get_window_extent().overlaps(panel) for panel in panels)
    assert not panels[0].overlaps(panels[1])


@pytest.mark.parametrize("draw", ["draw", "draw_front"])
def test_a_picture_is_whole_or_as_it_was(tmp_path, records, monkeypatch, draw):
    path = tmp_path / "a.png"
    path.write_bytes(b"before")
    what = records if draw == "draw" else summary.summarise(records, 100)
    with monkeypatch.context() as patch:
        patch.setattr(files.os, "fsync", lambda _: (_ for _ in ()).throw(OSError("no space")))
        with pytest.raises(files.NotWritten, match=r"a.png cannot be written: no space"):
            getattr(picture, draw)(path, "a", what)
    assert [(each.name, each.read_bytes()) for each in tmp_path.iterdir()] == [("a.png", b"before")]
    getattr(picture, draw)(path, "a", what)
    assert path.read_bytes().startswith(b"\x89PNG")
    assert path.read_bytes().endswith(b"IEND\xaeB`\x82")
