"""Pictures show every point, explain every mark, tell all methods apart, and are whole or as they were."""

import itertools
import math
import random
import re
from dataclasses import replace

import pytest
from matplotlib import style
from matplotlib.figure import Figure

from tests.train.test_summary import record
from wuskern.train import files, output, picture, summary
from wuskern.train.looks import looks
from wuskern.train.methods import DENSE
from wuskern.train.picture import CONTROL, FRONT, LOST, SKIPS
from wuskern.train.records import Record

NAMES = [
    DENSE,
    *(f"meprop:k={k}" for k in range(20)),
    *(f"ssprop:ratio=.{i}+sieve:interval={i}:keep=.7:once=true" for i in range(14)),
]


def trained(names, seeds, epochs, mode="full", lost=math.inf, accuracy=None):
    """Runs of methods that take ever less time, and dense in their time. lost: from which epoch on the loss is none."""
    chance = random.Random(1)

    def run(name, seed, planned, seconds):
        skips = mode if name != DENSE else "full"
        learned = [0.1 + 0.8 * (1 - math.exp(-4 * i / planned)) + chance.uniform(-0.1, 0.1) for i in range(planned)]
        made = record(name, seed, [(skips, seconds, accuracy or each) for each in learned], planned)
        losses = [math.nan if epoch.number >= lost and name != DENSE else 1.0 for epoch in made.epochs]
        epochs = [replace(epoch, loss=loss, test_loss=loss) for epoch, loss in zip(made.epochs, losses, strict=True)]
        return Record(name, seed, planned, epochs)

    for seed in range(seeds):
        yield from (run(name, seed, epochs, 2 - i / len(names)) for i, name in enumerate(names))
        yield from (run(DENSE, seed, short, 2) for short in range(math.ceil(epochs / 2), epochs))


CASES = {
    "one run": ([DENSE], 1, 4),
    "one epoch": ([DENSE, "meprop:k=1"], 2, 1),
    "many": (NAMES, 10, 20),
    "skips": ([DENSE, "wus", "wus+lr"], 3, 6, "skip"),
    "lost": ([DENSE, "meprop:k=1"], 2, 6, "full", 3),
    "all right": ([DENSE, "wus"], 1, 3, "full", math.inf, 1.0),
}


@pytest.fixture(scope="module", params=CASES, ids=str)
def pictures(request, tmp_path_factory):
    """Records, their rows, and the figures of both pictures as they were written."""
    folder = tmp_path_factory.mktemp("pictures")
    records = list(trained(*CASES[request.param]))
    rows = summary.summarise(records, 100)
    found, save = [], Figure.savefig
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", lambda figure, *a, **k: (found.append(figure), save(figure, *a, **k)))
        picture.draw(folder / "a.png", "vgg11 on digits", records)
        picture.draw_front(folder / "f.png", "vgg11 on digits", rows)
    return records, rows, *found, folder


def lines(figure):
    return [line for panel in figure.axes for line in panel.lines]


def entries(figure):
    """The legend's, as one line each."""
    (legend,) = figure.legends
    return [text.get_text().replace("\n", "") for text in legend.get_texts()]


def overlapping(boxes):
    return [(a, b) for a, b in itertools.combinations(boxes, 2) if a.padded(-1).overlaps(b.padded(-1))]


def test_every_epoch_is_drawn_inside_axes_that_all_seeds_share(pictures):
    records, _, figure, *_ = pictures
    for seed, panel in enumerate(figure.axes):
        points = {tuple(point) for line in panel.lines for point in line.get_xydata()}
        for each in summary.policy_records(records):
            if each.seed == seed:
                assert {(epoch.total_seconds, epoch.test_accuracy) for epoch in each.epochs} <= points
        assert all(panel.bbox.contains(*panel.transData.transform(point)) for point in points)
        assert (panel.get_xlim(), panel.get_ylim()) == (figure.axes[0].get_xlim(), figure.axes[0].get_ylim())
    assert len(figure.axes) == min(4, len({each.seed for each in records}))


def test_every_end_and_its_bar_are_inside(pictures):
    _, rows, _, figure, _ = pictures
    (panel,) = figure.axes
    points = [tuple(point) for line in panel.lines for point in line.get_xydata()]
    bars = [tuple(end) for bar in panel.collections for path in bar.get_paths() for end in path.vertices]
    for row in rows:
        assert (row.seconds, pytest.approx(sum(row.accuracies) / len(row.accuracies))) in points
    assert all(panel.bbox.contains(*panel.transData.transform(point)) for point in points + bars)
    assert len(bars) == 2 * len(rows)


@pytest.mark.parametrize("which", [2, 3])
def test_the_legend_has_every_method_once_and_covers_nothing(pictures, which):
    figure, (legend,) = pictures[which], pictures[which].legends
    names = [re.sub(r"^\d+  ", "", entry) for entry in entries(figure)]
    methods = list(dict.fromkeys(each.policy for each in pictures[0]))
    assert names[: len(methods)] == methods
    assert set(names[len(methods) :]) <= {CONTROL, SKIPS, LOST, FRONT}
    box = legend.get_window_extent()
    assert not any(box.overlaps(panel.get_tightbbox()) for panel in figure.axes)
    assert all(figure.bbox.contains(*corner) for corner in (box.min, box.max))
    texts = [text for text in [*legend.get_texts(), *figure.axes[0].texts, figure._suptitle] if text.get_text()]
    ticks = [label for panel in figure.axes for label in [*panel.get_yticklabels(), panel.xaxis.label, panel.yaxis.label]]
    assert overlapping([text.get_window_extent() for text in [*texts, *ticks] if text.get_text()]) == []


@pytest.mark.parametrize("which", [2, 3])
def test_a_legend_s_handles_look_as_what_is_drawn(pictures, which):
    figure = pictures[which]

    def look(line, *more):
        return line.get_color(), line.get_marker(), *more

    handles = figure.legends[0].get_lines()
    told = [look(handle) for handle in handles if handle.get_label() in (CONTROL, LOST, FRONT)]
    drawn = {look(line) for line in lines(figure)}
    methods = {look(handle) for handle in handles[: len({each.policy for each in pictures[0]})]}
    skips = {(colour, "o") for colour, _ in methods} if SKIPS in entries(figure) else set()
    assert drawn - skips <= methods | set(told)
    assert methods | set(told) <= drawn
    assert methods == {(look.colour, look.marker) for look in looks(each.policy for each in pictures[0]).values()}


def test_skipped_and_lost_epochs_are_marked(pictures):
    records, rows, figure, ends, _ = pictures
    kinds = {SKIPS: lambda epoch: epoch.mode == "skip", LOST: lambda epoch: not math.isfinite(epoch.loss)}
    for name, what in kinds.items():
        many = [sum(map(what, each.epochs)) for each in records if each.seed < 4]
        wanted = sum(many) if name == SKIPS else sum(map(bool, many))
        marker, size = picture.MARKS[name]["marker"], picture.MARKS[name]["markersize"]
        marked = [line for line in lines(figure) if (line.get_marker(), line.get_markersize()) == (marker, size)]
        assert sum(len(line.get_xdata()) for line in marked) == wanted
        assert (name in entries(figure)) == bool(wanted)
    assert (LOST in entries(ends)) == any(row.test_loss is None for row in rows)


def test_the_title_says_what_is_shown(pictures):
    records, rows, *figures, _ = pictures
    methods, seeds = (len({getattr(each, name) for each in records}) for name in ("policy", "seed"))
    for figure in figures:
        title = figure._suptitle.get_text()
        assert title.startswith("vgg11 on digits: ")
        assert ("one method" if methods == 1 else f"{methods} methods") in title
        assert ("one seed" if seeds == 1 else f"{seeds} seeds") in title
        assert "test accuracy" in title
    assert ("standard error" in title) == (len(rows[0].accuracies) > 1)
    assert ("first 4 of" in figures[0]._suptitle.get_text()) == (seeds > 4)


def test_pictures_take_no_more_room_than_was_looked_for(pictures):
    sizes = [path.stat().st_size for path in pictures[-1].iterdir()]
    assert len(sizes) == 2
    assert max(sizes) <= output.PICTURE_BYTES // 2
    assert sum(sizes) <= output.PICTURE_BYTES


def test_pictures_are_white_whatever_the_user_has_set(tmp_path):
    records = list(trained([DENSE, "wus"], 1, 3))
    picture.draw(tmp_path / "a.png", "a", records)
    with style.context("dark_background"):
        picture.draw(tmp_path / "b.png", "a", records)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


@pytest.mark.parametrize("draw", ["draw", "draw_front"])
def test_a_picture_is_whole_or_as_it_was(tmp_path, monkeypatch, draw):
    path = tmp_path / "a.png"
    path.write_bytes(b"before")
    records = list(trained([DENSE, "wus"], 1, 3))
    what = records if draw == "draw" else summary.summarise(records, 100)
    with monkeypatch.context() as patch:
        patch.setattr(files.os, "fsync", lambda _: (_ for _ in ()).throw(OSError("no space")))
        with pytest.raises(files.NotWritten, match=r"a.png cannot be written: no space"):
            getattr(picture, draw)(path, "a", what)
    assert [(each.name, each.read_bytes()) for each in tmp_path.iterdir()] == [("a.png", b"before")]
    getattr(picture, draw)(path, "a", what)
    assert path.read_bytes().startswith(b"\x89PNG")
    assert path.read_bytes().endswith(b"IEND\xaeB`\x82")
