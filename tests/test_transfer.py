"""The same questions on several data sets: differences by hand, and what has no answer."""

import pandas as pd
import pytest

from iumad.report import transfer


def rows(values: dict[tuple[str, str], list[float]], setting: str = "1-1") -> pd.DataFrame:
    """AUPRO of two categories learnt one after the other: (method, modality) -> a value for each seed.

    The first category had ten points more before the second was learnt.
    """
    records = []
    for (method, modality), seeds in values.items():
        for seed, value in enumerate(seeds):
            run = {"method": method, "modality": modality, "setting": setting, "seed": seed}
            run |= {"run_id": f"{method}{modality}{seed}", "profile": "p", "dataset": "d"}
            steps = [(0, "a", value + 0.1), (1, "a", value), (1, "b", value)]
            records += [
                run | {"step": step, "category": name, "metric": "aupro", "value": each}
                for step, name, each in steps
            ]
    return pd.DataFrame(records)


def test_differences_by_hand():
    table = rows(
        {
            ("ib-iumad", "rgb"): [0.5, 0.6, 0.7],
            ("ib-iumad", "rgb+depth"): [0.7, 0.8, 0.9],
            ("iuf", "rgb+depth"): [0.6, 0.8, 0.7],
        }
    )
    judged = transfer.answers({"tiles": table}).set_index("statement")
    # (10 + 0 + 20) / 3 against IUF; 20 for every seed over colour alone; all forgot ten points
    assert judged["mean"].to_dict() == pytest.approx(
        {
            "IB-IUMAD localises better than IUF": 10,
            "IB-IUMAD forgets less AUPRO than IUF": 0,
            "IB-IUMAD localises better with a second modality": 20,
        }
    )
    assert set(judged["n"]) == {3}


def test_means_over_seeds_have_their_spread():
    table = rows({("plain", "rgb"): [0.5, 0.7], ("bank", "rgb"): [0.8]})
    shown = transfer.result_table(table, ["aupro", "fm_aupro", "accuracy"])
    assert shown.iloc[:, 3:].to_numpy().tolist() == [
        ["60.0 ± 14.1", "10.0 ± 0.0"],
        ["80.0", "10.0"],
    ]


def test_one_image_has_no_second_one():
    table = rows({("ib-iumad", "rgb"): [0.5, 0.6], ("bank-unified", "rgb"): [0.5, 0.5]})
    judged = transfer.answers({"colour": table, "none": table.iloc[:0]})
    assert list(judged["statement"]) == ["IB-IUMAD localises better than one bank for all"]
    shown = transfer.answer_table(judged, ["colour", "none"])
    assert list(shown["statement"]) == [question.statement for question in transfer.QUESTIONS]


def test_a_category_is_given_away_by_any_floor():
    table = rows({("floor-mean", "rgb"): [0.55], ("floor-nearest", "rgb"): [0.75]})
    table = table.assign(metric="i_auroc")
    table.loc[(table["method"] == "floor-nearest") & (table["category"] == "b"), "value"] = 0.81
    floors = transfer.floors({"d": table}).set_index("category")
    assert floors[transfer.GIVEN].to_dict() == {"a": "", "b": "yes"}
    assert floors.loc["b", "nearest"] == pytest.approx(81)
    (text,) = transfer.summary(transfer.answers({}), floors.reset_index(), "d")
    assert "In 1 of 2 categories" in text


def test_whole_images_are_asked_where_no_floor_gives_them_away():
    table = rows(
        {
            ("ib-iumad", "rgb"): [0.6, 0.7],
            ("iuf", "rgb"): [0.5, 0.5],
            ("floor-mean", "rgb"): [0.6],
        }
    ).assign(metric="i_auroc")
    second = table["category"] == "b"
    table.loc[second & (table["method"] == "floor-mean"), "value"] = 0.81
    table.loc[second & (table["method"] == "iuf"), "value"] = 0.9  # would turn the difference round
    judged = transfer.answers({"colour": table}).set_index("statement")
    assert judged["mean"].to_dict() == pytest.approx(
        {"IB-IUMAD detects defective images better than IUF": 15}
    )


def said_of_both(*records: tuple[str, str, str]) -> list[str]:
    """What the summary says of verdicts (data, statement, verdict), and of no floor."""
    keys = ["data", "statement", "verdict"]
    judged = pd.DataFrame(records, columns=keys).assign(mean=2.0, low=1.0, high=3.0, n=5)
    floors = transfer.floors({"sweets": rows({("ib-iumad", "rgb"): [0.9]})})
    return [
        each.striptags()
        for each in transfer.summary(judged, floors, "sweets")
        if "AUPRO of IB-IUMAD ends" not in each
    ]


def test_what_is_decided_on_both_is_said_as_it_was_found():
    better, less = (transfer.QUESTIONS[place].statement for place in (0, 1))
    worse = ("sweets", better, "contradicted")
    assert said_of_both(
        worse,
        ("road", better, "contradicted"),
        ("sweets", less, "supported"),
        ("road", less, "undecided"),
    ) == ["On sweets and on road alike, IB-IUMAD localises worse than IUF."]
    assert said_of_both(worse, ("road", better, "supported")) == [
        "On sweets, IB-IUMAD localises worse than IUF; on road, IB-IUMAD localises better than IUF."
    ]
    three = [("road", better, "supported"), ("cells", better, "contradicted")]
    assert said_of_both(worse, *three) == [
        "On sweets and on cells alike, IB-IUMAD localises worse than IUF; on road, IB-IUMAD localises better "
        "than IUF."
    ]
    assert said_of_both(("sweets", less, "contradicted"), ("road", less, "contradicted")) == [
        "On sweets and on road alike, IB-IUMAD forgets more AUPRO than IUF."
    ]
    assert said_of_both(worse, ("road", better, "undecided")) == [
        "No statement is decided on sweets and on photographs."
    ]


def test_every_statement_has_an_opposite():
    for question in transfer.QUESTIONS:
        assert transfer._opposite(question.statement) != question.statement


def test_a_gate_that_was_not_measured_counts_as_missed():
    methods = {("iuf", "rgb"): [0.9], ("ib-iumad", "rgb"): [0.9], ("floor-mean", "rgb"): [0.6]}
    table = rows(methods).assign(metric="i_auroc")
    named = rows({key: [1.0] for key in methods if key[0] != "floor-mean"}).assign(
        metric="accuracy"
    )
    table = pd.concat([table, named])
    missed = transfer.missed_gates(table)
    assert missed.index.tolist() == [("iuf", "rgb"), ("ib-iumad", "rgb")]
    assert all("learns all categories at once" in text for text in missed)
    once = rows({("joint", "rgb"): [0.9]}).query("step == 1").assign(metric="i_auroc", step=0)
    assert transfer.missed_gates(table, pd.concat([table, once])).empty


def test_floors_of_photographs_count_for_every_seed():
    table = rows({("plain", "rgb"): [0.95, 0.65], ("floor-mean", "rgb"): [0.6]})
    gates = transfer.gates(table.assign(metric="i_auroc")).set_index(["gate", "method"])
    above = gates.loc[("floors", "plain")]  # 35 and 5 points
    assert above["value"] == pytest.approx(0.05)


def defects(inside: dict[tuple[str, str], list[float]]) -> pd.DataFrame:
    """Four marked defects in two categories, of an eighth of a cell to eight cells of a grid of 4."""
    tables = [
        pd.DataFrame(
            {
                "category": list("aabb"),
                "defect": ["dent", "hole", "hole", "hole"],
                "sample_id": list("1234"),
                "share": [1 / 128, 1 / 32, 1 / 8, 1 / 2],
                "found": [0.5, 0.5, 1.0, 1.0],
                "inside": values,
                "aupro": values,
            }
        ).assign(method=method, modality=modality)
        for (method, modality), values in inside.items()
    ]
    return pd.concat(tables, ignore_index=True)


def test_the_second_image_is_compared_image_by_image():
    both = {("plain", "rgb"): [0.5, 0.7, 0.9, 0.9], ("plain", "rgb+infrared"): [0.6, 0.8, 1.0, 1.0]}
    table = transfer.inside_table(defects(both | {("iuf", "rgb"): [0.5] * 4}))
    assert list(table["method"]) == ["<code>plain</code>", "<code>iuf</code>"]
    assert table["difference"].to_list() == [
        "10.0 [10.0, 10.0]",
        "-",
    ]  # each image gains ten points
    assert table["rgb"][0].startswith("75.0 [")  # ((50 + 70) / 2 + 90) / 2


def test_three_modalities_are_shown_and_all_compared_with_colour():
    each = {
        ("plain", "rgb+depth"): [0.7] * 4,
        ("plain", "depth"): [0.9] * 4,
        ("plain", "rgb"): [0.5] * 4,
        ("bank", "depth"): [0.6] * 4,
    }
    table = transfer.inside_table(defects(each), "aupro").set_index("method")
    assert list(table) == ["depth", "rgb", "rgb+depth", "difference"]
    assert table.loc["<code>plain</code>", "difference"].startswith("20.0 ")
    assert table.loc["<code>bank</code>", ["rgb", "rgb+depth", "difference"]].tolist() == ["-"] * 3


def test_scores_of_whole_images_leave_out_what_a_floor_gives_away():
    table = rows({("iuf", "rgb"): [0.5], ("floor-mean", "rgb"): [0.6]}).assign(metric="i_auroc")
    second = table["category"] == "b"
    table.loc[second & (table["method"] == "iuf"), "value"] = 0.9
    table.loc[second & (table["method"] == "floor-mean"), "value"] = 0.81
    assert transfer.result_table(table, ["i_auroc"]).iloc[0, -1] == "50.0"
    found = transfer.clean_found(defects({("plain", "rgb"): [0.5] * 4}), table)
    assert found["found"].isna().tolist() == [False, False, True, True]
    shown = transfer.kind_table(found, "found")
    assert list(shown["category"] + " " + shown["defect"]) == ["a dent", "a hole"]


def test_a_defect_without_a_mask_has_no_size():
    unmarked = defects({("plain", "rgb"): [0.5] * 4})
    unmarked.loc[0, ["share", "inside"]] = None
    sizes = transfer.size_table(unmarked, grid=4)
    assert list(sizes["pixel AUROC inside the image"]) == [
        "0.25 to 1 (1)",
        "1 to 4 (1)",
        "over 4 (1)",
    ]
    assert "a dent" not in set(
        transfer.kind_table(unmarked, "inside")[["category", "defect"]].agg(" ".join, axis=1)
    )


def test_size_classes_in_cells():
    table = transfer.size_table(defects({("plain", "rgb"): [0.5, 0.6, 0.7, 0.8]}), grid=4)
    inside = table["pixel AUROC inside the image"].iloc[0]
    assert inside.to_dict() == pytest.approx(
        {"0 to 0.25 (1)": 50, "0.25 to 1 (1)": 60, "1 to 4 (1)": 70, "over 4 (1)": 80}
    )


def test_size_and_localisation_within_a_category():
    both = {("plain", "rgb"): [0.5, 0.6, 0.9, 0.8], ("bank", "rgb"): [0.6, 0.5, 0.8, 0.9]}
    ranks = transfer.size_ranks(defects(both)).set_index("method")
    assert ranks.loc["plain"].to_dict() == {"a": pytest.approx(1), "b": pytest.approx(-1)}
    said = transfer.size_text(ranks.iloc[:1].assign(b=0.5).reset_index()).striptags()
    assert said == "Within a category larger defects are better localised: plain in 2 of 2."


def test_each_kind_of_defect_by_hand():
    two = {("plain", "rgb"): [0.5, 0.6, 0.7, 0.9], ("bank", "rgb"): [1.0] * 4}
    table = transfer.kind_table(defects(two), "inside")
    assert list(table["category"] + " " + table["defect"]) == ["a dent", "a hole", "b hole"]
    assert list(table["images"]) == [1, 1, 2]
    assert list(table["area (%)"]) == pytest.approx([100 / 128, 100 / 32, 100 * 5 / 16])
    plain, bank = table.iloc[:, 4], table.iloc[:, 5]
    assert [*plain, *bank] == pytest.approx([50, 60, 80, 100, 100, 100])


def test_forgetting_after_each_step():
    table = rows({("plain", "rgb"): [0.5, 0.6]})
    found = transfer.forgetting_by_step(table)
    later = pd.concat([found, found.assign(categories=3, value=12)])
    assert transfer.growth_text(later).striptags() == (
        "Forgetting of AUPRO with 2 and with 3 categories: plain from 10.0 to 12.0 points."
    )
    assert found["value"].to_list() == pytest.approx(
        [10]
    )  # category a lost ten points in the one increment
    assert found["categories"].to_list() == [2]


def test_error_left_in_percent_of_the_first_epoch():
    log = pd.DataFrame({"step": 0, "term": "fusion", "method": "plain", "epoch": range(5)})
    log = log.assign(setting="2-1", value=[4.0, 3.0, 2.0, 1.5, 1.0])
    other = log.assign(setting="1-1", value=2.0)  # a curve of its own
    table = transfer.convergence({"tiles": pd.concat([log, other])})
    assert table.iloc[:, 2:].to_numpy().tolist() == [
        ["2-1", 5, 75, 37.5, 25],
        ["1-1", 5, 100, 100, 100],
    ]
