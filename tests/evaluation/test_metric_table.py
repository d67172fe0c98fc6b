from evaluation.groups import GroupTable
from evaluation.metric_table import difference_rows, group_rows, metric_rows
from tests.evaluation.report_example import METRICS, differences, measure


def test_numbers_intervals_and_production_stand_in_the_table() -> None:
    better = METRICS.model_copy(update={"identity": measure(0.49)})
    identity = metric_rows(METRICS, better)[0]
    assert (identity.label, identity.better) == ("Identity", "higher")
    assert (identity.release, identity.interval, identity.prior, identity.production) == (
        "0.510",
        "0.460 – 0.560",
        "0.060",
        "0.490",
    )
    assert [row.label for row in metric_rows(METRICS)] == ["Identity", "Identity gain", "Background change"]
    assert all(row.production == "" for row in metric_rows(METRICS))


def test_the_table_names_the_distance_of_which_variation_is_a_mean() -> None:
    varied = METRICS.model_copy(update={"variation": measure(0.3), "perceptual_distance": "LPIPS 0.1 (AlexNet)"})
    (row,) = [row for row in metric_rows(varied) if row.label == "Variation"]
    assert row.note == "between seeds of one subject and prompt: LPIPS 0.1 (AlexNet)"


def test_every_line_says_by_itself_what_it_is() -> None:
    """Lines change places when a reader sorts them."""
    full = METRICS.model_copy(update={name: measure(0.5) for name in type(METRICS).model_fields if "_auc" in name})
    labels = [row.label for row in metric_rows(full)]
    assert len(set(labels)) == len(labels) and not any(label.startswith("…") for label in labels)
    assert {"Router AUC", "Router AUC of a centre blob", "Router AUC of another picture's map"} <= set(labels)


def test_groups_have_a_column_for_what_any_of_them_has_with_its_interval() -> None:
    first = GroupTable(group="style", prompts=2, pictures=16, measures={"identity": measure(0.9)})
    second = GroupTable(
        group="", prompts=1, pictures=8, measures={"variation": measure(0.2), "subject_area": measure(1)}
    )
    columns, (style, rest) = group_rows([first, second])
    assert columns == ["Identity", "Variation"]
    assert style.cells == [("0.900", "0.850 – 0.950"), ("", "")] and (style.prompts, style.pictures) == (2, 16)
    assert rest.group == "all" and rest.cells[0] == ("", "")
    assert group_rows([]) == ([], [])


def test_differences_to_production_are_put_in_words() -> None:
    rows = difference_rows(differences())
    assert [(row.label, row.meaning) for row in rows] == [
        ("Identity", "better"),
        ("Background change", "worse"),
        ("Variation", "no more than chance"),
    ]
    assert (rows[0].candidate, rows[0].production) == ("0.500", "0.300")
    assert (rows[0].difference, rows[0].interval) == ("+0.200", "+0.150 – +0.250")
