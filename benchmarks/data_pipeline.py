"""A pipeline of three trivial steps: CPU microseconds an item, beside calling by hand.

python benchmarks/data_pipeline.py       (with SpeechBrain on the path it is measured too)
"""

from __future__ import annotations

from typing import Any

from _data_rounds import rounds, table

from brain_data import DataPipeline, DynamicItemDataset

ITEMS: list[dict[str, Any]] = [
    {"func": lambda a: a + 1, "takes": ["a"], "provides": "b"},
    {"func": lambda b: b * 2, "takes": ["b"], "provides": "c"},
    {"func": lambda c: c - 1, "takes": ["c"], "provides": "d"},
]
ROW = {"id": "x", "a": 1}


def by_hand(row: dict[str, Any]) -> dict[str, Any]:
    """Compute the same, planned by a human."""
    first, second, third = (item["func"] for item in ITEMS)
    return {"id": row["id"], "d": third(second(first(row["a"])))}


def main() -> None:
    """Measure and print."""
    first, second, third = (item["func"] for item in ITEMS)
    keys = ["id", "d"]
    pipeline = DataPipeline(["id", "a"], ITEMS, keys)
    dataset = DynamicItemDataset({"x": {"a": 1}}, ITEMS, keys)
    assert pipeline(ROW) == dataset[0] == by_hand(ROW)
    contenders = {
        "by hand": lambda: {"id": ROW["id"], "d": third(second(first(ROW["a"])))},
        "brain DataPipeline": lambda: pipeline(ROW),
        "brain dataset[0]": lambda: dataset[0],
    }
    try:
        from speechbrain.dataio.dataset import DynamicItemDataset as TheirDataset
        from speechbrain.utils.data_pipeline import DataPipeline as TheirPipeline
    except ImportError:
        print("SpeechBrain is not installed: left out")
    else:
        theirs = TheirPipeline(["id", "a"], ITEMS, keys)
        their_dataset = TheirDataset({"x": {"a": 1}}, ITEMS, keys)
        contenders["speechbrain DataPipeline"] = lambda: theirs(ROW)
        contenders["speechbrain dataset[0]"] = lambda: their_dataset[0]
    table("a row through three steps, us", rounds(contenders, 41, 2000), "by hand")


if __name__ == "__main__":
    main()
