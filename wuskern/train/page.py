"""The page of ``wuskern report``: HTML with nothing outside of it, no script, readable on light and on dark."""

import statistics
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from wuskern.train import curves
from wuskern.train.looks import Look, looks
from wuskern.train.summary import Row, cells, legend

if TYPE_CHECKING:
    from wuskern.train.report import Curve, Results

# Okabe and Ito's colours; on dark the dark ones are lighter.
LIGHT = "#000000", "#b87900", "#2b8cc4", "#00805e", "#005f96", "#b84a00", "#b1568c"
DARK = "#ffffff", "#e69f00", "#56b4e9", "#2fc79a", "#5fa8e0", "#f08340", "#e09cc0"
POLICY = "default-src 'none'; style-src 'unsafe-inline'"  # a browser loads nothing, whatever a label says


def html_of(results: Sequence["Results"]) -> str:
    """The whole page: all verdicts first, then for each file its table, curves, environment and arguments."""
    title = results[0].title if len(results) == 1 else f"{len(results)} experiments"
    body = [_tag("h1", f"wuskern: {title}"), *(_verdict(one, number, len(results)) for number, one in enumerate(results, 1))]
    if len(results) > 1:
        body.append("<p>Each experiment is compared with its own dense runs; numbers of two experiments are not paired.</p>")
    for number, one in enumerate(results, 1):
        body.append(f'<section id="experiment-{number}">\n{_details(one, number, len(results) > 1)}\n</section>')
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"{_tag('title', f'wuskern: {title}')}\n<style>{_style()}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(body)
        + "\n</main>\n</body>\n</html>\n"
    )


def _verdict(one: "Results", number: int, many: int) -> str:
    said = one.verdict.splitlines() or _ends(one.rows)
    if not one.complete:
        said = ["Interrupted: this is what was done.", *said]
    items = "\n".join(_tag("li", line) for line in said)
    heading = f'<h2><a href="#experiment-{number}">{escape(one.title)}</a></h2>' if many > 1 else "<h2>Verdict</h2>"
    return f'<section class="verdict">\n{heading}\n<ul>\n{items}\n</ul>\n</section>'


def _ends(rows: Sequence[Row]) -> list[str]:
    """What there is to say where nothing was compared."""
    lines = [f"{row.policy} ends at {_percent(row.accuracies)}." for row in rows]
    return [*lines, "Nothing was compared: that takes dense and another method in --policy."]


def _percent(accuracies: Sequence[float]) -> str:
    spread = f" +- {100 * statistics.stdev(accuracies):.2f}" if len(accuracies) > 1 else ""
    return f"{100 * statistics.fmean(accuracies):.2f} %{spread} test accuracy, n = {len(accuracies)}"


def _details(one: "Results", number: int, several: bool) -> str:
    look_of = looks(row.policy for row in one.rows if row.control_of is None)
    look_of = look_of | looks(curve.policy for curve in one.curves) if one.curves else look_of
    parts = [_tag("h2", f"{number}. {one.title}") if several else "", _table(one), *_figures(one, look_of)]
    if one.peaks:
        peaks = {name: f"{value / 2**20:.1f} MiB" for name, value in one.peaks.items()}
        parts += [_tag("h3", "Peak memory of a step"), _pairs(peaks)]
    parts += [_tag("h3", "Environment"), _pairs(one.environment), _tag("h3", "Arguments"), _pairs(one.arguments)]
    return "\n".join([*parts, f"<p>From {escape(str(one.path))}.</p>"])


def _table(one: "Results") -> str:
    if not one.rows:
        return "<p>No epoch was done.</p>"
    header, *lines = cells(one.rows)
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in header)
    body = "\n".join(
        f'<tr{" class=" + chr(34) + "control" + chr(34) if row.control_of else ""}><th scope="row">{escape(name.strip())}</th>'
        + "".join(_tag("td", cell) for cell in rest)
        + "</tr>"
        for row, (name, *rest) in zip(one.rows, lines, strict=True)
    )
    notes = "".join(_tag("p", line) for line in legend(one.rows).splitlines())
    return (
        f'<div class="wide"><table>\n<caption>At the end of training, over seeds</caption>\n<thead><tr>{head}</tr></thead>\n'
        f'<tbody>\n{body}\n</tbody>\n</table></div>\n<div class="notes">{notes}</div>'
    )


def _figures(one: "Results", look_of: dict[str, Look]) -> list[str]:
    """The charts that the file has numbers for, and their legend."""
    if not one.curves:
        return []
    names = list(dict.fromkeys(curve.policy for curve in one.curves))
    seeds = len({curve.seed for curve in one.curves})
    values = [value for curve in one.curves for value in curve.accuracies]
    y = curves.accuracies("test accuracy", values)
    epochs = {name: [list(enumerate(c.accuracies, 1)) for c in _of(one, name)] for name in names}
    most = max(len(curve.accuracies) for curve in one.curves)
    x = curves.linear("epoch", [1.0, float(most)], _short)
    charts = [_chart("Test accuracy after each epoch", one, names, seeds, x, y, epochs, look_of)]
    if all(curve.seconds for curve in one.curves):
        seconds = {name: [list(zip(c.seconds, c.accuracies, strict=True)) for c in _of(one, name)] for name in names}
        x = curves.linear("seconds of training", [c.seconds[-1] for c in one.curves], _short, from_zero=True)
        charts.append(_chart("Test accuracy over training time", one, names, seeds, x, y, seconds, look_of))
    losses = {
        name: [[(n, loss) for n, loss in enumerate(c.losses, 1) if loss is not None] for c in _of(one, name)] for name in names
    }
    found = [loss for lines in losses.values() for line in lines for _, loss in line]
    if found:
        x, y = curves.linear("epoch", [1.0, float(most)], _short), curves.linear("test loss", found, _short)
        charts.append(_chart("Test loss after each epoch", one, names, seeds, x, y, losses, look_of))
    items = "".join(f"<li>{curves.swatch(look_of[name])} {escape(name)}</li>" for name in names)
    return [f'<ul class="legend">{items}</ul>', *charts]


def _of(one: "Results", name: str) -> list["Curve"]:
    return [curve for curve in one.curves if curve.policy == name]


def _chart(
    title: str,
    one: "Results",
    names: Sequence[str],
    seeds: int,
    x: curves.Axis,
    y: curves.Axis,
    lines: Any,
    look_of: dict[str, Look],
) -> str:
    what = "one seed" if seeds == 1 else f"thin lines are single ones of {seeds} seeds, thick lines their means"
    scale = "; log scale of the error" if y.label == "test accuracy" else ""
    caption = f"{title}; {what}{scale}."
    ends = "; ".join(f"{name}: {_last(lines[name], y)}" for name in names)
    picture = curves.chart(f"{title}, {one.title}", f"{caption} At the end of each seed: {ends}.", x, y, lines, look_of)
    return f"<figure>\n{picture}\n{_tag('figcaption', caption)}\n</figure>"


def _last(lines: Sequence[Sequence[curves.Point]], y: curves.Axis) -> str:
    return ", ".join(y.text(line[-1][1]) for line in lines if line) or "nothing"


def _short(value: float) -> str:
    return f"{value:.6g}"


def _pairs(values: dict[str, Any]) -> str:
    rows = "\n".join(
        f'<tr><th scope="row">{escape(str(name))}</th>{_tag("td", _plain(value))}</tr>'
        for name, value in values.items()
        if value is not None
    )
    return f'<div class="wide"><table class="pairs">\n{rows}\n</table></div>'


def _plain(value: Any) -> str:
    return ", ".join(f"{name}: {each}" for name, each in value.items()) if isinstance(value, dict) else str(value)


def _tag(name: str, text: str) -> str:
    return f"<{name}>{escape(text)}</{name}>"


def _style() -> str:
    def colours(of: Sequence[str]) -> str:
        return "".join(f".c{number}{{--colour:{colour}}}" for number, colour in enumerate(of))

    return f"""
:root{{color-scheme:light dark;--text:#1a1a1a;--back:#ffffff;--faint:#5a5a5a;--rule:#d5d5d5;--box:#f3f5f8}}
{colours(LIGHT)}
@media (prefers-color-scheme:dark){{
:root{{--text:#e8e8e8;--back:#15181c;--faint:#a8a8a8;--rule:#3c4148;--box:#20252b}}
{colours(DARK)}
}}
body{{margin:0;background:var(--back);color:var(--text);font:16px/1.5 system-ui,sans-serif}}
main{{max-width:70rem;margin:0 auto;padding:1rem}}
a{{color:inherit}}
.verdict{{background:var(--box);border-left:4px solid var(--faint);padding:.2rem 1rem;margin:1rem 0}}
.verdict h2{{font-size:1.1rem;margin:.5rem 0 0}}
.wide{{overflow-x:auto}}
table{{border-collapse:collapse;font-size:.9rem;font-variant-numeric:tabular-nums}}
caption{{text-align:left;color:var(--faint);padding:.3rem 0}}
th,td{{text-align:left;padding:.25rem .7rem .25rem 0;border-bottom:1px solid var(--rule);vertical-align:top}}
tbody th{{font-weight:600}}
.control th,.control td{{color:var(--faint);font-weight:400}}
.control th{{padding-left:1rem}}
.pairs th{{font-weight:400;color:var(--faint);white-space:nowrap}}
.notes p,figcaption{{color:var(--faint);font-size:.85rem;margin:.2rem 0}}
.legend{{list-style:none;padding:0;display:flex;flex-wrap:wrap;gap:.2rem 1.2rem;font-size:.9rem}}
.swatch{{width:36px;height:16px;vertical-align:middle}}
figure{{margin:1rem 0}}
.chart{{width:100%;max-width:60rem;height:auto}}
.chart text{{fill:var(--faint);font:12px system-ui,sans-serif}}
.grid{{stroke:var(--rule);stroke-width:1}}
polyline{{fill:none;stroke:var(--colour)}}
.seed{{stroke-width:1;opacity:.35}}
.mean{{stroke-width:2}}
.marker{{fill:var(--colour);stroke:var(--back);stroke-width:.8}}
"""
