"""A pipeline of three trivial steps: CPU microseconds per item, compared with plain calls.

    python benchmarks/data_pipeline.py

SpeechBrain is measured, too, if it is installed.
"""

from __future__ import annotations

from typing import Any

from _timing import cpu_seconds, print_microseconds
from _verdict import report, take_quick

from brain_data import DataPipeline, DynamicItemDataset

ITEMS: list[dict[str, Any]] = [
    {"func": lambda a: a + 1, "takes": ["a"], "provides": "b"},
    {"func": lambda b: b * 2, "takes": ["b"], "provides": "c"},
    {"func": lambda c: c - 1, "takes": ["c"], "provides": "d"},
]
ROW = {"id": "x", "a": 1}


def call_directly(row: dict[str, Any]) -> dict[str, Any]:
    """Return the same item without a pipeline."""
    first, second, third = (item["func"] for item in ITEMS)
    return {"id": row["id"], "d": third(second(first(row["a"])))}


def main() -> None:
    """Measure and print."""
    first, second, third = (item["func"] for item in ITEMS)
    keys = ["id", "d"]
    pipeline = DataPipeline(["id", "a"], ITEMS, keys)
    dataset = DynamicItemDataset({"x": {"a": 1}}, ITEMS, keys)
    assert pipeline(ROW) == dataset[0] == call_directly(ROW)
    contenders = {
        "plain calls": lambda: {"id": ROW["id"], "d": third(second(first(ROW["a"])))},
        "brain_data DataPipeline": lambda: pipeline(ROW),
        "brain_data dataset[0]": lambda: dataset[0],
    }
    try:
        from speechbrain.dataio.dataset import DynamicItemDataset as SpeechBrainDataset
        from speechbrain.utils.data_pipeline import DataPipeline as SpeechBrainPipeline
    except ImportError:
        print("SpeechBrain is not installed: skipped")
    else:
        speechbrain_pipeline = SpeechBrainPipeline(["id", "a"], ITEMS, keys)
        speechbrain_dataset = SpeechBrainDataset({"x": {"a": 1}}, ITEMS, keys)
        contenders["speechbrain DataPipeline"] = lambda: speechbrain_pipeline(ROW)
        contenders["speechbrain dataset[0]"] = lambda: speechbrain_dataset[0]
    seconds = cpu_seconds(contenders, rounds=9 if take_quick() else 41, calls=2000)
    print_microseconds("a row through three steps, us", seconds, "plain calls")
    least = 1e6 * min(seconds["brain_data DataPipeline"])
    report("a row through a pipeline of three steps", least, "µs", 2.5)


if __name__ == "__main__":
    main()
