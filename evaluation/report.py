"""The report: one self-contained HTML page that shows a run to somebody who was not there.

`render` takes plain data (`ReportData`) and returns the page. Every section whose data is empty is left out. Captions,
file names and reasons come from strangers' files: the templates escape all of them, and the page's own policy lets a
browser apply exactly one stylesheet and run exactly one script, both known by their SHA-256, and fetch nothing.
"""

import base64
import hashlib
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from evaluation import charts
from evaluation.gallery import SIDE, Gallery
from evaluation.metric_table import difference_rows, group_rows, metric_rows
from evaluation.protocol import Cell
from evaluation.report_data import ReportData

_HERE = Path(__file__).parent
# What is said of one picture: a title, the measure of one subject and of two, and the prior's.
_SHOWN = (
    ("identity", "identity", "pair_identity"),
    ("prompt", "prompt_consistency", "pair_prompt_consistency"),
)


def render(data: ReportData) -> str:
    """The whole page as HTML text, pictures, style and script included; it needs no other file.

    Without its script it is complete: only sorting, filters and the closer look are missing.
    """
    environment = Environment(
        loader=FileSystemLoader(_HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"address": charts.data_address, "duration": charts.duration, "short": charts.short}
    backgrounds = _backgrounds(data.gallery) if data.gallery else []
    style = environment.get_template("report.css.j2").render(paper=charts.PAPER, backgrounds=backgrounds)
    script = (_HERE / "report.js").read_text("utf-8")
    return environment.get_template("report.html.j2").render(
        data=data,
        rows=metric_rows(data.metrics, data.production) if data.metrics else [],
        groups=group_rows(data.groups),
        beside=[
            (name, found.pictures, difference_rows(found))
            for name, found in [*([("production", data.comparison)] if data.comparison else []), *data.others]
        ],
        lines=[(curve, charts.draw_line(curve.steps, curve.values, curve.log, curve.marks)) for curve in data.curves],
        overlay=charts.overlay,
        heat_map=charts.heat_map,
        map_address=charts.map_address,
        paper=charts.PAPER,
        side=SIDE,
        hero=_hero(data),
        slowest=max((stage.seconds for stage in data.stages), default=0.0) or 1.0,
        measured=_measured,
        style=Markup(style),
        script=Markup(script),
        style_digest=_digest(style),
        script_digest=_digest(script),
    )


def _digest(text: str) -> str:
    """As a content security policy names an inline script or stylesheet."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")


def _backgrounds(gallery: Gallery) -> list[tuple[str, str]]:
    """Class name → data address of the pictures that many shots share: the prior's, and the reference photos."""
    priors = [
        (f"prior-{place}", charts.data_address(image, most=SIDE)) for place, image in enumerate(gallery.priors.values())
    ]
    people = [
        (f"person-{place}", charts.data_address(image, most=SIDE))
        for place, image in enumerate(gallery.references.values())
    ]
    return [*priors, *people]


def _measured(cell: Cell, values: dict[str, float], prior: bool = False) -> list[tuple[str, float]]:
    """Title and number of what a picture's caption says."""
    start = "prior_" if prior else ""
    named = [(title, values.get(start + (pair if cell.is_pair else single))) for title, single, pair in _SHOWN]
    return [(title, value) for title, value in named if value is not None]


def _hero(data: ReportData) -> Sequence[Image.Image]:
    """A few pictures for the head of the page: drawn ones if there are any, photos otherwise."""
    drawn = [
        picture for row in (data.grid.rows if data.grid else ()) for group in row.pictures for picture in group[:1]
    ]
    if drawn:
        # A diagonal through the table shows different people in different scenes.
        across = len(data.grid.prompts) if data.grid else 1
        places = dict.fromkeys(place * (across + 1) % len(drawn) for place in range(5))
        return [drawn[place] for place in places]
    return [photo.picture for photo in data.photos[:5]]
