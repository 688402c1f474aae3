"""The page of ``wuskern report``: what it says, that it needs nothing else, and what is no file of results."""

import copy
import html.parser
import json
import re

import pytest

from bench.condense import condensed
from tests.train.test_results import save
from tests.train.test_summary import seed_of
from wuskern import cli
from wuskern.train import curves, page, report
from wuskern.train.looks import looks

EVIL = '<script>alert("x")</script><img src=http://a/b>'


class Parsed(html.parser.HTMLParser):
    """The elements of a page, with their attributes, and the text in each; elements have to be closed in their order."""

    VOID = ("meta",)

    def __init__(self, text):
        super().__init__()
        self.elements, self.open, self.text = [], [], {}
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open:
            self.text.setdefault(self.open[-1], []).append(data)


@pytest.fixture
def content(tmp_path):
    records = [*seed_of(0), *seed_of(1)]
    return save(tmp_path / "results.json", records, complete=True) | {"arguments": {"model": "vgg11", "data": "digits"}}


@pytest.fixture
def made(tmp_path, capsys):
    """Writes files and runs the command; the page."""

    def run(*contents, arguments=()):
        paths = []
        for number, content in enumerate(contents):
            paths.append(tmp_path / f"{number}.json")
            paths[-1].write_text(json.dumps(content))
        assert cli.main(["report", *map(str, paths), "--overwrite", *arguments]) == 0
        assert capsys.readouterr().out == f"report: {tmp_path / 'report.html'}\n"
        return (tmp_path / "report.html").read_text()

    return run


def test_the_verdict_is_first_and_the_rest_is_there(made, content):
    text = made(content)
    found = Parsed(text)
    order = [text.index(part) for part in ("<h1>", "It is worse than dense", "<table>", "<svg", "Environment", "Arguments")]
    assert order == sorted(order)
    assert found.text["title"][0] == found.text["h1"][0] == "wuskern: vgg11 on digits"
    assert found.text["li"][0] == content["verdict"]
    cells = [cell for cell in found.text["td"] if cell.startswith("-7.00")]
    assert cells == ["-7.00 (-8.00 to -6.00) LOSS"]  # .85 against .92 in both seeds; one label is 1 point
    for value in content["environment"].values():
        assert isinstance(value, dict) or str(value) in found.text["td"]
    charts = [title for title in found.text["title"] if title.startswith("Test ")]
    assert charts == ["Test accuracy after each epoch, vgg11 on digits", "Test accuracy over training time, vgg11 on digits"]
    described = found.text["desc"][0]
    assert described.endswith("At the end of each seed: dense: 95 %, 95 %; wus: 85 %, 85 %.")
    lines = [attributes["class"].split()[1] for tag, attributes in found.elements if tag == "polyline"]
    assert (lines.count("seed"), lines.count("mean")) == (8, 4 + 2)  # two charts, two methods, two seeds; and the legend


def test_nothing_is_asked_of_a_network_and_nothing_runs(made, content):
    text = made(content)
    names = {tag for tag, _ in Parsed(text).elements}
    assert not names & {"script", "link", "img", "iframe", "object", "embed", "form", "base", "image", "use"}
    assert "default-src &#x27;none&#x27;" in text or "default-src 'none'" in text
    assert not re.search(r"https?://|url\(|@import|\bon\w+=|src=|xlink", text)


def test_a_reader_who_sees_nothing_or_sees_it_in_the_dark(made, content):
    found = Parsed(made(content))
    (root,) = [attributes for tag, attributes in found.elements if tag == "html"]
    assert root["lang"] == "en"
    for attributes in [attributes for tag, attributes in found.elements if tag == "svg"]:
        assert attributes.get("role") == "img" or attributes.get("aria-hidden") == "true"
    assert all(attributes["scope"] in ("row", "col") for tag, attributes in found.elements if tag == "th")
    assert "prefers-color-scheme:dark" in found.text["style"][0]
    for colours, back in ((page.LIGHT, "#ffffff"), (page.DARK, "#15181c")):
        assert min(contrast(colour, back) for colour in colours) >= 3  # WCAG, of graphics


def contrast(a, b):
    def luminance(colour):
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_everything_is_text(made, content):
    evil = json.loads(json.dumps(content).replace('"wus"', json.dumps(EVIL)).replace('"vgg11"', json.dumps(EVIL)))
    evil |= {"verdict": EVIL, "environment": {EVIL: {EVIL: EVIL}}, "peak_bytes": {EVIL: 5e6}}
    text = made(evil)
    found = Parsed(text)
    assert not {"script", "img"} & {tag for tag, _ in found.elements}
    assert found.text["li"][0] == EVIL
    assert text.count("<script") == 0


def test_several_results_are_apart_and_condensed_ones_have_fewer_curves(made, content):
    other = condensed(content) | {"complete": False, "verdict": ""}
    text = made(content, other)
    found = Parsed(text)
    assert found.text["h1"] == ["wuskern: 2 experiments"]
    assert text.index("experiment-2") < text.index("<table>"), "all verdicts come first"
    assert "Interrupted: this is what was done." in found.text["li"]
    assert sum(title.startswith("Test ") for title in found.text["title"]) == 2 + 1
    targets = {attributes["href"] for tag, attributes in found.elements if tag == "a"}
    assert targets == {f"#{attributes['id']}" for tag, attributes in found.elements if "id" in attributes}


def test_a_run_alone_is_no_loss(made, tmp_path):
    dense = save(tmp_path / "results.json", seed_of(0)[:1], complete=True)
    text = made(dense)
    assert "LOSS" not in text
    assert "dense ends at 95.00 % test accuracy, n = 1." in text
    assert "Nothing was compared" in text


def test_nothing_was_done_yet(made, content):
    text = made(content | {"summary": [], "runs": [], "verdict": "", "complete": False})
    assert "No epoch was done." in text


def test_losses_that_are_not_finite_are_left_out(made, content):
    for run in content["runs"]:
        for number, epoch in enumerate(run["epochs"]):
            epoch["test_loss"] = None if number > 1 else 0.5 + number
    text = made(content)
    assert "Test loss after each epoch" in text
    assert "At the end of each seed: dense: 1.5, 1.5; wus: 1.5, 1.5." in text


# ---- files ----------------------------------------------------------------------------------------------------------


def test_a_page_replaces_nothing_unasked(tmp_path, capsys, content):
    (tmp_path / "results.json").write_text(json.dumps(content))
    results = str(tmp_path)  # the folder stands for the file in it
    assert cli.main(["report", results]) == 0
    (tmp_path / "folder").mkdir()
    for arguments, message in (
        ([], f"--out: expected a new file (or --overwrite), got {tmp_path / 'report.html'}"),
        (["--out", str(tmp_path / "results.json"), "--overwrite"], "--out: expected another file than the results, got "),
        (["--out", str(tmp_path / "folder"), "--overwrite"], "--out: expected a file that can be replaced, got "),
        (["--out", str(tmp_path / "absent" / "a.html")], "--out: expected a path in a folder that is there, got "),
        (["--out", ""], "argument --out: expected a path, got ''"),
    ):
        assert cli.main(["report", results, *arguments]) == 2
        (said,) = [line for line in capsys.readouterr().err.splitlines() if line]
        assert message in said
    assert json.loads((tmp_path / "results.json").read_text()) == content
    assert cli.main(["report", results, "--overwrite"]) == 0


def test_a_full_disk_is_no_wrong_input(tmp_path, capsys, content, monkeypatch):
    (tmp_path / "results.json").write_text(json.dumps(content))

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("wuskern.train.files.os.replace", full)
    assert cli.main(["report", str(tmp_path)]) == 1
    assert "report.html cannot be written: No space left on device" in capsys.readouterr().err


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", "3", "not JSON", "[" * 100_000, '{"summary": [], "runs": []}', '{"format": 2, "rows": []}']
)
def test_what_is_no_result_is_one_line(tmp_path, capsys, text):
    path = tmp_path / "a.json"
    path.write_text(text)
    assert cli.main(["report", str(path)]) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith(f"wuskern: RESULTS: expected results.json of wuskern train, got {path} (")
    assert not (tmp_path / "report.html").exists()


def test_whatever_is_wrong_in_a_file_it_is_a_page_or_a_value_error(content, tmp_path):
    path, refused = tmp_path / "a.json", 0
    places = [place for place in paths_of(content) if place[0] not in ("arguments", "environment")]
    for place in places:
        for wrong in (None, -1, "text", [None], float("nan")):
            spoiled = copy.deepcopy(content)
            put(spoiled, place, wrong)
            path.write_text(json.dumps(spoiled))
            try:
                Parsed(page.html_of([report.read(path)]))
            except ValueError as error:
                refused += 1
                assert str(error).startswith("RESULTS: expected ")  # noqa: PT017
    assert refused > len(places)


def paths_of(value, path=()):
    """One of each kind: the first of a list stands for all."""
    if path:
        yield path
    items = value.items() if isinstance(value, dict) else enumerate(value[:1]) if isinstance(value, list) else ()
    for key, item in items:
        yield from paths_of(item, (*path, key))


def put(content, path, value):
    for key in path[:-1]:
        content = content[key]
    content[path[-1]] = value


# ---- curves ---------------------------------------------------------------------------------------------------------


def test_a_chart_worked_by_hand():
    """The plot is 674 wide, from 70, and 282 high, from 14."""
    x, y = (curves.Axis("", 0.0, 10.0, [0, 5, 10], str) for _ in range(2))
    text = curves.chart("t", "d", x, y, {"dense": [[(0, 0), (10, 10)], [(0, 10), (10, 10), (5, 5)]]}, looks(["dense"]))
    lines = re.findall(r'<polyline class="c0 (\w+)" points="([^"]*)"', text)
    assert lines == [
        ("seed", "70.0,296.0 744.0,14.0"),
        ("seed", "70.0,14.0 744.0,14.0 407.0,155.0"),
        ("mean", "70.0,155.0 744.0,14.0"),
    ]
    assert "<title>t</title>\n<desc>d</desc>" in text


@pytest.mark.parametrize(
    ("values", "ticks"),
    [
        ([1, 20], [5, 10, 15, 20]),
        ([0.0, 0.31], [0, 0.1, 0.2, 0.3]),
        ([3, 3], [2.6, 2.8, 3.0, 3.2, 3.4]),
        ([1e-9, 5e-9], [1e-9, 2e-9, 3e-9, 4e-9, 5e-9]),
    ],
)
def test_ticks_are_round(values, ticks):
    axis = curves.linear("", values, str)
    assert axis.ticks == pytest.approx(ticks)
    assert axis.low <= min(values) <= max(values) <= axis.high


@pytest.mark.parametrize("values", [[0.0, 1.0], [1.0], [0.0], [0.5, 0.5], [0.97, 0.99]])
def test_accuracies_of_all_kinds_have_an_axis(values):
    axis = curves.accuracies("", values)
    assert all(-0.001 <= axis.share(value) <= 1.001 for value in values)
    assert axis.ticks
