"""The report's parts as Markdown: each takes the results and says what they show, or that they are not there yet."""

from collections.abc import Callable, Sequence

from PIL import Image

from evaluation.charts import heat_map
from tests.benchmarks.claims.charts import COLOURS, Series, scatter
from tests.benchmarks.claims.intervals import Estimate, at_equal_identity
from tests.benchmarks.claims.plan import (
    CURVE,
    DEFAULT,
    FULL,
    KEPT,
    LENGTHS,
    MOA,
    PRIOR,
    RELEASE,
    ROWS,
    SAMPLINGS,
    SCENES,
    SEARCH,
    STRENGTHS,
    TABLE,
    TABLE_SCENES,
    Arm,
    Drawn,
    Protocol,
    Sampling,
    curve_samplings,
)
from tests.benchmarks.claims.results import Results
from tests.benchmarks.claims.sheets import Row, sheet
from tests.benchmarks.claims.verdicts import curve, goals, verdicts

Pictures = dict[str, Image.Image]
_Row = tuple[Arm, int, Sampling, str]
_Dial = Callable[[Arm], list[tuple[int, Sampling, str]]]
_TRAINED = [one for one in TABLE if one.kind != "prior"]
_SHEET_PEOPLE, _SHEET_CELLS = 4, ((0, 11), (3, 12))  # (prompt, seed)
_NOT_YET = "*Not measured yet.*"


def state(results: Results, step: int) -> str:
    """How far the measurements are."""
    lines = []
    for one in _TRAINED:
        seeds = sorted(results.found(one, step, FULL))
        shorter = [length for length in LENGTHS if length != step and results.found(one, length, CURVE)]
        if seeds:
            words = f"training seeds {', '.join(map(str, seeds))}"
        else:
            words = "**not measured**" + (f" (only at {shorter[-1]} steps, for the curves)" if shorter else "")
        lines.append(f"| {one.title} | {words} |")
    asked = ", ".join(map(str, results.seeds))
    head = f"Trained for {step:,} steps of {ROWS} rows. Training seeds asked for: {asked}; in the table are:"
    most = max(len(results.found(one, step, FULL)) for one in _TRAINED)
    warning = (
        "\n**One training of each arm so far: the intervals are over people; another training may turn a verdict.** "
        "The command goes on where it stopped."
        if most < 2
        else ""
    )
    return "\n".join([head, "", "| arm | measured |", "| --- | --- |", *lines, warning])


def verdict_table(results: Results, step: int) -> str:
    """Every claim with its answer."""
    rows = [f"| {one.claim} | **{one.answer}** | {one.numbers or '–'} |" for one in verdicts(results, step)]
    return "\n".join(["| claim | here | numbers |", "| --- | --- | --- |", *rows])


def goal_table(results: Results, step: int) -> str:
    """The goal set beforehand, part by part, for the table's MoA and for release 1."""
    rows = [
        f"| {_titled(one, how)} | {goal.title} | {goal.wanted} | {goal.found} | {'yes' if goal.reached else '**no**'} |"
        for one, at in ((MOA, step), (RELEASE, 0))
        for how in (DEFAULT, KEPT)
        for goal in goals(results, one, at, step, how)
    ]
    if not rows:
        return _NOT_YET
    return "\n".join(["| arm | what | goal | found | reached |", "| --- | --- | --- | --- | --- |", *rows])


_COLUMNS = (
    ("identity", "identity", 2),
    ("prompt", "prompt", 3),
    ("object", "object", 2),
    ("background", "background", 2),
    ("fidelity", "against the prior", 1),
    ("variation", "variation", 3),
    ("router IoU", "router IoU", 2),
    ("area", "area", 2),
)
_CURVE_COLUMNS = tuple(column for column in _COLUMNS if column[0] != "variation")
_PAIR_COLUMNS = (
    ("minimum identity", "minimum matched identity", 2),
    ("mixing", "separation: right minus wrong reference", 2),
    ("two people", "two people found", 2),
)


def main_table(results: Results, step: int) -> str:
    """The table of arms."""
    return _table(results, _rows(step), FULL, _COLUMNS)


def _rows(step: int) -> list[_Row]:
    rows = [(one, DEFAULT) for one in (*TABLE, RELEASE)] + [*TABLE_SCENES, (RELEASE, KEPT)]
    return [(one, 0 if one == RELEASE else step, how, _titled(one, how)) for one, how in rows]


def _titled(one: Arm, how: Sampling) -> str:
    return f"{one.title}; {how.label()}" if how != DEFAULT else one.title


def pair_table(results: Results, step: int) -> str:
    """The same for two people."""
    text = _table(results, _rows(step), FULL, _PAIR_COLUMNS)
    return text + (
        "\n\nThe prior's row is the baseline: matching people to references chooses what looks best, so that even the "
        "prior's strangers, a man and a woman, separate a little."
    )


def _table(
    results: Results,
    rows: Sequence[_Row],
    protocol: Protocol,
    columns: Sequence[tuple[str, str, int]],
) -> str:
    head = ["| arm | " + " | ".join(title for _, title, _ in columns) + " |", "| --- " * (len(columns) + 1) + "|"]
    for one, step, sampling, title in rows:
        if not results.found(one, step, protocol, sampling):
            continue
        cells = []
        for measure, _, digits in columns:
            hidden = one.kind == "prior" and measure in ("background", "fidelity")
            found = None if hidden else results.estimate(measure, one, step, protocol, sampling)
            cells.append("–" if found is None else found.text(digits))
        head.append(f"| {title} | " + " | ".join(cells) + " |")
    return "\n".join(head) if len(head) > 2 else _NOT_YET


_AXES = (
    ("fidelity", "change against the prior's picture (grey levels)", "prior"),
    ("background", "background change under a swap (share of a seed change)", "background"),
    ("object", "held-object accuracy", "object"),
    ("prompt", "prompt consistency (CLIP cosine)", "prompt"),
)


def curves(results: Results, step: int, drawn: Pictures) -> str:
    """Identity against scene and prompt, over training length and over strength."""
    lengths = [length for length in LENGTHS if length <= step]
    scenes = dict(SCENES) | {RELEASE: KEPT}
    dials: tuple[tuple[str, str, _Dial], ...] = (
        (
            "length",
            f"Over training length ({', '.join(map(str, lengths))} steps)",
            lambda one: [(length, DEFAULT, f"{length} steps") for length in lengths if one != RELEASE],
        ),
        (
            "strength",
            "Over strength (¼, ½, ¾, 1), from the prior at 0",
            lambda one: [
                (0 if one == RELEASE else step, how, f"strength {how.strength:g}") for how in curve_samplings(DEFAULT)
            ],
        ),
        (
            "scene",
            "Over strength, the prior's scene kept (MoA by its routers, the others by a segmenter's mask)",
            lambda one: [
                (0 if one == RELEASE else step, how, f"strength {how.strength:g}, scene kept")
                for how in (curve_samplings(scenes[one]) if one in scenes else [])
            ],
        ),
    )
    parts = []
    for dial, title, points_of in dials:
        names = []
        for measure, label, short in _AXES:
            if series := _series(results, measure, points_of, dial != "length"):
                names.append(f"{dial}-{short}.png")
                drawn[names[-1]] = scatter(series, "identity", label)
        if names:
            shown = "\n".join(f"![{name}](pictures/claims/{name})" for name in names)
            parts.append(f"**{title}.** Identity grows to the right; less change is further down.\n\n{shown}")
    if not parts:
        return _NOT_YET
    every = [(one, *point) for one in _TRAINED for _, _, points_of in dials for point in points_of(one)]
    rows = [
        (one, at, how, f"{one.title}, {label}") for one, at, how, label in every if how != DEFAULT or "steps" in label
    ]
    table = _table(results, [(PRIOR, 0, DEFAULT, PRIOR.title), *rows], CURVE, _CURVE_COLUMNS)
    return "\n\n".join([*parts, f"<details><summary>The points</summary>\n\n{table}\n\n</details>"])


def _series(
    results: Results,
    measure: str,
    points_of: _Dial,
    from_prior: bool,
) -> list[Series]:
    series = []
    start = _point(results, measure, PRIOR, 0, DEFAULT)
    for number, one in enumerate((*TABLE, RELEASE)):
        if one.kind == "prior":
            if start:
                series.append(Series(one.title, [start], COLOURS[0]))
            continue
        found = [(_point(results, measure, one, at, how), label) for at, how, label in points_of(one)]
        kept = [(point, label) for point, label in found if point]
        if kept:
            points = [point for point, _ in kept]
            labels = [label.removeprefix("strength ").partition(",")[0].removesuffix(" steps") for _, label in kept]
            if from_prior and start:
                points, labels = [start, *points], ["", *labels]
            series.append(Series(one.title, points, COLOURS[number], labels))
    return series if len(series) > 1 else []


def _point(results: Results, measure: str, one: Arm, step: int, sampling: Sampling) -> tuple[float, float] | None:
    x, y = (results.estimate(name, one, step, CURVE, sampling) for name in ("identity", measure))
    return (x.mean, y.mean) if x and y else None


def equal_identity(results: Results, step: int) -> str:
    """MoA against each arm where both have the same identity, on the curves over strength, freely and scene kept."""
    plain = [(one, DEFAULT) for one in _TRAINED if one != MOA]
    kept = [(one, how) for one, how in SCENES if one != MOA]
    pairs = [*((DEFAULT, other) for other in plain), *((KEPT, other) for other in (*plain[:3], *kept))]
    rows = []
    for ours, (one, theirs) in pairs:
        cells = []
        level = None
        for column, digits in (("prior_fidelity", 1), ("swap_difference", 1), ("object_accuracy", 2)):
            first, second = curve(results, MOA, step, column, ours), curve(results, one, step, column, theirs)
            found = at_equal_identity(first, second) if first and second else None
            if found:
                level = found.level
                cells.append(
                    f"{found.first.mean:.{digits}f} against {found.second.mean:.{digits}f}; "
                    f"difference {found.difference.text(digits)}"
                )
        if level is not None:
            how = ours.label() or "free"
            rows.append(f"| {how} | {_titled(one, theirs)} | {level:.2f} | " + " | ".join(cells) + " |")
    if not rows:
        return _NOT_YET
    head = (
        "The curves over strength, read where MoA and the other arm have the same identity (the highest that both "
        "reach); linear between the points, MoA's figure first. Changes in grey levels.\n\n"
        "| MoA | against | identity | against the prior | under a swap | held objects |\n"
        "| --- | --- | --- | --- | --- | --- |"
    )
    return "\n".join([head, *rows])


def search(results: Results, step: int, drawn: Pictures) -> str:
    """MoA with one thing changed: in sampling, from release 1, and in training, from nothing."""
    at = max((length for length in LENGTHS if results.found(MOA, length, CURVE)), default=step)
    sampled = [(RELEASE, 0, DEFAULT, "release 1, free"),
               *((RELEASE, 0, how, how.label()) for how in (*STRENGTHS, *SAMPLINGS))]  # fmt: skip
    trained = [(MOA, at, DEFAULT, f"MoA as the demo preset, {at:,} steps"),
               *((one, at, DEFAULT, one.title) for one in SEARCH)]  # fmt: skip
    parts = [f"One training each and {CURVE.people} people: leads, not verdicts. The charts' numbers are the rows'."]
    for name, title, rows in (
        ("sampling", "In sampling: release 1, drawn from in other ways", sampled),
        ("training", "In training: MoA with one thing changed, from a fresh adapter", trained),
    ):
        found = [row for row in rows if results.found(row[0], row[1], CURVE, row[2])]
        missing = [row[3] for row in rows if row not in found]
        parts.append(f"### {title}")
        if len(found) > 1:
            parts.append(_searched(results, name, found, drawn))
        parts.append(f"Not measured yet: {'; '.join(missing)}." if missing else "")
    return "\n\n".join(part for part in parts if part)


def _searched(results: Results, name: str, rows: Sequence[_Row], drawn: Pictures) -> str:
    shown = []
    for measure, label, short in _AXES[:3]:
        series = [
            Series(f"{number}  {title}", [point], COLOURS[number % len(COLOURS)], [str(number)])
            for number, (one, length, how, title) in enumerate(rows)
            if (point := _point(results, measure, one, length, how))
        ]
        shown.append(f"search-{name}-{short}.png")
        drawn[shown[-1]] = scatter(series, "identity", label, (620, max(400, 20 * len(rows) + 40)), 270)
    numbered = [(one, at, how, f"{number}  {title}") for number, (one, at, how, title) in enumerate(rows)]
    table = _table(results, [(PRIOR, 0, DEFAULT, PRIOR.title), *numbered], CURVE, _CURVE_COLUMNS)
    charts = "\n".join(f"![{chart}](pictures/claims/{chart})" for chart in shown)
    return "\n\n".join([table, charts, _best(results, rows)])


def _best(results: Results, rows: Sequence[_Row]) -> str:
    """Which row keeps most of the prior's picture for the identity that it gains."""
    prior = results.estimate("identity", PRIOR, 0, CURVE)
    rated: list[tuple[float, str, Estimate, Estimate]] = []
    for one, at, how, title in rows:
        identity = results.estimate("identity", one, at, CURVE, how)
        change = results.estimate("fidelity", one, at, CURVE, how)
        if prior and identity and change and identity.mean > prior.mean + 0.02:
            rated.append((change.mean / (identity.mean - prior.mean), title, identity, change))
    if not rated:
        return "No setting gains more than 0.02 of identity over the prior at this length: none can be called best."
    rated.sort(key=lambda row: row[0])
    named = "; ".join(
        f"{title.strip('*')} ({rate:.0f}: identity {identity.mean:.2f}, change {change.mean:.1f})"
        for rate, title, identity, change in rated[:3]
    )
    return f"Least change against the prior's picture for each unit of identity gained: {named}."


def sheets(results: Results, step: int, drawn: Pictures) -> str:
    """Some people, every arm, at the same prompt and seed."""
    gallery, seed = results.gallery, results.seeds[0]
    arms = [one for one in _TRAINED if results.found(one, step, FULL)]
    prior = gallery.pictures(Drawn(PRIOR, 0, 0, DEFAULT, FULL))
    if prior is None or not arms:
        return _NOT_YET
    pictures = {one.name: gallery.pictures(Drawn(one, seed, step, DEFAULT, FULL)) for one in arms}
    people = gallery.subjects(FULL)[:_SHEET_PEOPLE]
    pictures[RELEASE.name] = gallery.pictures(Drawn(RELEASE, 0, 0, DEFAULT, FULL))
    kept = gallery.pictures(Drawn(RELEASE, 0, 0, KEPT, FULL)) or {}
    titles = ["reference", "the prior", *(one.title for one in arms), "release 1", "its router", "… scene kept"]
    parts = []
    for prompt, noise in _SHEET_CELLS:
        rows, text = [], ""
        for person in people:
            cells = {cell for cell in (pictures[arms[0].name] or {}) if cell.subject == person.name}
            cell = next((one for one in cells if (one.prompt, one.seed) == (prompt, noise)), None)
            if cell is None:
                continue
            text = cell.text.replace(f"a {person.word}", "a man or woman")
            shown = [(pictures[one.name] or {}).get(cell) for one in arms]
            last = (pictures[RELEASE.name] or {}).get(cell)
            routed = heat_map(last.picture, last.router) if last and last.router is not None else None
            row = [one.picture if one else None for one in (prior[cell.prior], *shown, last)]
            same = kept.get(cell)
            rows.append(Row([gallery.crop(person), *row, routed, same.picture if same else None]))
        name = f"sheet-{prompt}-{noise}.png"
        drawn[name] = sheet(titles, rows)
        parts.append(
            f"*{text}*, seed {noise}, after {step:,} steps of training seed {seed}\n\n![{text}](pictures/claims/{name})"
        )
    return "\n\n".join(parts)
