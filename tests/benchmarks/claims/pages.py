"""The report's parts as Markdown: each takes the results and says what they show, or that they are not there yet."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from PIL import Image

from evaluation.charts import heat_map
from tests.benchmarks.claims.charts import COLOURS, Series, scatter
from tests.benchmarks.claims.intervals import Estimate, at_equal_identity
from tests.benchmarks.claims.plan import (
    CURVE,
    DEFAULT,
    FULL,
    LENGTHS,
    MOA,
    PRIOR,
    ROWS,
    SAMPLINGS,
    SEARCH,
    STRENGTHS,
    TABLE,
    Arm,
    Drawn,
    Protocol,
    Sampling,
)
from tests.benchmarks.claims.results import Results
from tests.benchmarks.claims.sheets import Row, sheet
from tests.benchmarks.claims.verdicts import curve, goals, verdicts

Pictures = dict[str, Image.Image]
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
    return "\n".join([head, "", "| arm | measured |", "| --- | --- |", *lines])


def verdict_table(results: Results, step: int) -> str:
    """Every claim with its answer."""
    rows = [f"| {one.claim} | **{one.answer}** | {one.numbers or '–'} |" for one in verdicts(results, step)]
    return "\n".join(["| claim | here | numbers |", "| --- | --- | --- |", *rows])


def goal_table(results: Results, step: int) -> str:
    """The goal set beforehand, part by part."""
    found = goals(results, step)
    if not found:
        return _NOT_YET
    rows = [f"| {g.title} | {g.wanted} | {g.found} | {'yes' if g.reached else '**no**'} |" for g in found]
    return "\n".join(["| MoA's | goal | found | reached |", "| --- | --- | --- | --- |", *rows])


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
_PAIR_COLUMNS = (
    ("minimum identity", "minimum matched identity", 2),
    ("mixing", "separation: right minus wrong reference", 2),
    ("two people", "two people found", 2),
)


def main_table(results: Results, step: int) -> str:
    """The table of arms."""
    return _table(results, [(one, step, DEFAULT, one.title) for one in TABLE], FULL, _COLUMNS)


def pair_table(results: Results, step: int) -> str:
    """The same for two people."""
    text = _table(results, [(one, step, DEFAULT, one.title) for one in TABLE], FULL, _PAIR_COLUMNS)
    return text + (
        "\n\nThe prior's row is the baseline: matching people to references chooses what looks best, so that even the "
        "prior's strangers, a man and a woman, separate a little."
    )


def _table(
    results: Results,
    rows: Sequence[tuple[Arm, int, Sampling, str]],
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
    dials: tuple[tuple[str, str, _Dial], ...] = (
        (
            "length",
            f"Over training length ({', '.join(map(str, lengths))} steps)",
            lambda one: [(length, DEFAULT, f"{length} steps") for length in lengths],
        ),
        (
            "strength",
            "Over strength (¼, ½, ¾, 1), from the prior at 0",
            lambda one: [(step, how, f"strength {how.strength:g}") for how in (*STRENGTHS, DEFAULT)],
        ),
    )
    parts = []
    for dial, title, points_of in dials:
        names = []
        for measure, label, short in _AXES:
            if series := _series(results, measure, points_of, dial == "strength"):
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
    table = _table(results, [(PRIOR, 0, DEFAULT, PRIOR.title), *rows], CURVE, _COLUMNS[:5] + _COLUMNS[6:])
    return "\n\n".join([*parts, f"<details><summary>The points</summary>\n\n{table}\n\n</details>"])


def _series(
    results: Results,
    measure: str,
    points_of: _Dial,
    from_prior: bool,
) -> list[Series]:
    series = []
    start = _point(results, measure, PRIOR, 0, DEFAULT)
    for number, one in enumerate(TABLE):
        if one.kind == "prior":
            if start:
                series.append(Series(one.title, [start], COLOURS[0]))
            continue
        found = [(_point(results, measure, one, at, how), label) for at, how, label in points_of(one)]
        kept = [(point, label) for point, label in found if point]
        if kept:
            points = [point for point, _ in kept]
            labels = [label.removeprefix("strength ").removesuffix(" steps") for _, label in kept]
            if from_prior and start:
                points, labels = [start, *points], ["", *labels]
            series.append(Series(one.title, points, COLOURS[number], labels))
    return series if len(series) > 1 else []


def _point(results: Results, measure: str, one: Arm, step: int, sampling: Sampling) -> tuple[float, float] | None:
    x, y = (results.estimate(name, one, step, CURVE, sampling) for name in ("identity", measure))
    return (x.mean, y.mean) if x and y else None


def equal_identity(results: Results, step: int) -> str:
    """MoA against each arm where both have the same identity, on the curves over strength."""
    rows = []
    for one in _TRAINED:
        if one == MOA:
            continue
        cells = []
        level = None
        for column, digits in (("prior_fidelity", 1), ("swap_difference", 1), ("object_accuracy", 2)):
            ours, theirs = curve(results, MOA, step, column), curve(results, one, step, column)
            found = at_equal_identity(ours, theirs) if ours and theirs else None
            if found:
                level = found[0]
                cells.append(f"{found[1].text(digits)} against {found[2].text(digits)}")
        if level is not None:
            rows.append(f"| {one.title} | {level:.2f} | " + " | ".join(cells) + " |")
    if not rows:
        return _NOT_YET
    head = (
        "The curves over strength, read where MoA and the other arm have the same identity (the highest that both "
        "reach); linear between the points, MoA's figure first. Changes in grey levels.\n\n"
        "| MoA against | identity | against the prior | under a swap | held objects |\n| --- | --- | --- | --- | --- |"
    )
    return "\n".join([head, *rows])


def search(results: Results, step: int, drawn: Pictures) -> str:
    """MoA with one thing changed: in training, or only in sampling."""
    at = max((length for length in LENGTHS if results.found(MOA, length, CURVE)), default=step)
    trained = [(one, at, DEFAULT, one.title) for one in SEARCH]
    sampled = [(MOA, at, how, how.label()) for how in (*STRENGTHS, *SAMPLINGS)]
    rows = [(MOA, at, DEFAULT, "**as the demo preset**"), *trained, *sampled]
    rows = [row for row in rows if results.found(row[0], row[1], CURVE, row[2])]
    missing = [title for one, _, how, title in (*trained, *sampled) if not results.found(one, at, CURVE, how)]
    if len(rows) < 2:
        return _NOT_YET + (f" To come: {'; '.join(missing)}." if missing else "")
    for measure, label, short in _AXES[:3]:
        series = [
            Series(title.strip("*"), [point], COLOURS[number % len(COLOURS)], [str(number)])
            for number, (one, length, how, title) in enumerate(rows)
            if (point := _point(results, measure, one, length, how))
        ]
        numbered = [replace(one, name=f"{one.labels[0]}  {one.name}") for one in series]
        drawn[f"search-{short}.png"] = scatter(numbered, "identity", label, (620, max(400, 20 * len(rows) + 40)), 270)
    table = _table(results, [(PRIOR, 0, DEFAULT, PRIOR.title), *rows], CURVE, _COLUMNS[:5] + _COLUMNS[6:])
    text = f"One training seed, {at:,} steps, {CURVE.people} people: leads, not verdicts.\n\n{table}\n\n"
    text += "\n".join(f"![{short}](pictures/claims/search-{short}.png)" for _, _, short in _AXES[:3])
    text += "\n\n" + _best(results, rows)
    return text + (f"\n\nNot measured yet: {'; '.join(missing)}." if missing else "")


def _best(results: Results, rows: Sequence[tuple[Arm, int, Sampling, str]]) -> str:
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
    titles = ["reference", "the prior", *(one.title for one in arms), "MoA's router"]
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
            mine = (pictures.get(MOA.name) or {}).get(cell)
            routed = heat_map(mine.picture, mine.router) if mine and mine.router is not None else None
            row = [gallery.crop(person), prior[cell.prior].picture, *(one.picture if one else None for one in shown)]
            rows.append(Row([*row, routed]))
        name = f"sheet-{prompt}-{noise}.png"
        drawn[name] = sheet(titles, rows)
        parts.append(
            f"*{text}*, seed {noise}, after {step:,} steps of training seed {seed}\n\n![{text}](pictures/claims/{name})"
        )
    return "\n\n".join(parts)
