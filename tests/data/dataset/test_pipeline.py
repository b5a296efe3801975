"""The pipeline: what runs, in which order, and its errors."""

import copy
import functools
import pickle

import pytest

from brain_data import (
    CircularDependencyError,
    DataItemError,
    DataPipeline,
    DynamicItem,
    GeneratorDynamicItem,
    UnknownKeyError,
    provides,
    takes,
)


def lengths_of(text):
    """Yield the words, then their number."""
    words = text.split()
    yield words
    yield len(words)


def test_items_are_computed_from_other_items_in_any_order_of_adding():
    """An item may be added before the one that it takes from."""
    pipeline = DataPipeline(["text"])
    pipeline.add_dynamic_item(lambda lower: lower[::-1], "lower", "reversed")
    pipeline.add_dynamic_item(str.lower, "text", "lower")
    pipeline.set_output_keys(["reversed", "text"])
    assert pipeline({"text": "Ab"}) == {"reversed": "ba", "text": "Ab"}


def test_only_what_the_outputs_need_runs():
    """An item that no output needs is not computed."""
    ran = []
    items = [
        {"func": lambda text: ran.append("a") or text, "takes": "text", "provides": "a"},
        {"func": lambda text: ran.append("b") or text, "takes": ["text"], "provides": ["b"]},
    ]
    DataPipeline(["text"], items, ["b"])({"text": "x"})
    assert ran == ["b"]


def test_an_item_that_two_outputs_need_runs_once():
    """It is computed once for each row."""
    ran = []
    pipeline = DataPipeline(["x"], [], ["b", "c"])
    pipeline.add_dynamic_item(lambda x: ran.append(x) or x, "x", "a")
    pipeline.add_dynamic_item(lambda a: a + 1, "a", "b")
    pipeline.add_dynamic_item(lambda a: a + 2, "a", "c")
    assert pipeline({"x": 1}) == {"b": 2, "c": 3}
    assert ran == [1]


def test_items_run_in_the_order_that_the_outputs_name_them():
    """Items that draw random numbers draw them in SpeechBrain's order: outputs, then takes."""
    ran = []

    def item(name):
        return lambda *_: ran.append(name) or name

    pipeline = DataPipeline(["x"])
    pipeline.add_dynamic_item(item("a"), ["x", "late"], "a")
    pipeline.add_dynamic_item(item("b"), ["x"], "b")
    pipeline.add_dynamic_item(item("early"), ["x"], "early")
    pipeline.add_dynamic_item(item("late"), ["early"], "late")
    pipeline.set_output_keys(["b", "a"])
    pipeline({"x": 0})
    assert ran == ["b", "early", "late", "a"]


def test_outputs_can_be_renamed():
    """A mapping is from output name to key."""
    pipeline = DataPipeline(["text"], [], {"words": "text"})
    assert pipeline({"text": "x"}) == {"words": "x"}


def test_the_caller_s_row_is_not_modified():
    """Computing an item does not write it into the row."""
    row = {"x": 1}
    pipeline = DataPipeline(["x"], [{"func": abs, "takes": "x", "provides": "y"}], ["y"])
    pipeline(row)
    assert row == {"x": 1}


def test_a_generator_runs_only_as_far_as_needed():
    """The code after a yield runs if a later key is requested."""
    item = takes("text")(provides("words", "count")(lengths_of))
    pipeline = DataPipeline(["text"], [item], ["count"])
    assert pipeline({"text": "a b c"}) == {"count": 3}
    assert pipeline.compute_specific(["words"], {"text": "d e"}) == {"words": ["d", "e"]}
    assert pipeline({"text": "f"}) == {"count": 1}


def test_a_generator_that_is_not_finished_is_closed_after_the_row():
    """A file that an item holds open is closed with its row."""
    closed = []

    def held(x):
        try:
            yield x
            yield x + 1
        finally:
            closed.append(x)

    pipeline = DataPipeline(["x"], [takes("x")(provides("a", "b")(held))], ["a"])
    pipeline({"x": 1})
    assert closed == [1]


def test_several_values_of_one_call_are_several_items():
    """A function and a yield may return several values at once."""

    def stereo(_):
        yield "both"
        yield "left", "right"

    pipeline = DataPipeline(["x"], [], ["a", "b", "wav", "right"])
    pipeline.add_dynamic_item(lambda x: (x, x + 1), "x", ["a", "b"])
    pipeline.add_dynamic_item(stereo, "x", ["wav", ["left", "right"]])
    assert pipeline({"x": 1}) == {"a": 1, "b": 2, "wav": "both", "right": "right"}


def test_an_item_may_take_any_number_of_keys():
    """Zero and three are two examples."""
    pipeline = DataPipeline(["x", "y", "z"], [], ["sum", "constant"])
    pipeline.add_dynamic_item(lambda x, y, z: x + y + z, ["x", "y", "z"], "sum")
    pipeline.add_dynamic_item(lambda: 7, [], "constant")
    assert pipeline({"x": 1, "y": 2, "z": 3}) == {"sum": 6, "constant": 7}


def test_an_overridden_call_of_an_item_is_used():
    """The function is called directly only if __call__ is not overridden."""

    class Twice(DynamicItem):
        def __call__(self, *args):
            return super().__call__(*args) * 2

    class Later(GeneratorDynamicItem):
        def __call__(self, *args):
            return [super().__call__(*args)]

    pipeline = DataPipeline(["x"], [], ["y", "words", "count"])
    pipeline.add_dynamic_item(Twice(["x"], len, ["y"]))
    pipeline.add_dynamic_item(Later(["x"], lengths_of, ["words", "count"]))
    for _ in range(2):
        assert pipeline({"x": "a b"}) == {"y": 6, "words": [["a", "b"]], "count": [2]}


def test_the_order_is_computed_once_and_again_after_a_change(monkeypatch):
    """It is computed for the first row, not for each."""
    planned = []
    original = DataPipeline._plan_for
    monkeypatch.setattr(
        DataPipeline, "_plan_for", lambda self, keys: planned.append(keys) or original(self, keys)
    )
    pipeline = DataPipeline(["x"], [{"func": abs, "takes": "x", "provides": "y"}], ["y"])
    for _ in range(3):
        pipeline({"x": 1})
        pipeline.compute_specific(["x"], {"x": 1})
    assert len(planned) == 2
    pipeline.set_output_keys(["x"])
    assert pipeline({"x": 1}) == {"x": 1}
    assert len(planned) == 3


def test_a_copy_can_be_changed_without_changing_the_original():
    """Items added to a copy are not in the original, and the functions are the same objects."""
    pipeline = DataPipeline(["x"], [{"func": abs, "takes": "x", "provides": "y"}], ["y"])
    twin = pipeline.copy()
    twin.add_dynamic_item(abs, "y", "z")
    twin.set_output_keys(["z"])
    assert twin({"x": -1}) == {"z": 1}
    assert pipeline({"x": -1}) == {"y": 1}
    assert "z" not in pipeline.key_to_node
    assert twin.dynamic_items[0].func is pipeline.dynamic_items[0].func


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])
def test_a_pipeline_that_has_run_can_be_cloned(clone):
    """A spawned worker unpickles the pipeline."""
    pipeline = DataPipeline(["x"], [{"func": abs, "takes": "x", "provides": "y"}], ["y"])
    pipeline({"x": -1})
    assert clone(pipeline)({"x": -2}) == {"y": 2}


@pytest.mark.parametrize("taken", ["y", "id"])
def test_a_key_that_is_provided_already_and_not_taken_is_refused(taken):
    """Of two items that provide one key, or an item and the row, one would hide the other."""
    pipeline = DataPipeline(["id", "x"], [{"func": abs, "takes": "x", "provides": "y"}])
    with pytest.raises(ValueError, match=f"must be provided once; got '{taken}'"):
        pipeline.add_dynamic_item(len, "x", ["new", taken])
    assert "new" not in pipeline.key_to_node


def test_an_item_may_replace_a_key_of_the_row_that_it_takes():
    """The outputs get the new value, and the row keeps its own, as most recipes for text need."""

    def encode(text):
        yield text.strip()
        yield [ord(letter) for letter in text.strip()]

    row = {"id": 1, "text": " ab "}
    pipeline = DataPipeline(row, output_keys=["text", "tokens"])
    pipeline.add_dynamic_item(encode, "text", ["text", "tokens"])
    assert pipeline(row) == {"text": "ab", "tokens": [97, 98]}
    assert row["text"] == " ab "
    assert pipeline.compute_specific(["tokens"], row) == {"tokens": [97, 98]}


@pytest.mark.parametrize("outputs", [["old", "new"], ["new", "old"]])
def test_an_item_gets_the_value_of_a_key_as_of_when_it_was_added(outputs):
    """A replaced key changes only items added later, whatever runs first."""
    pipeline = DataPipeline(["x"], output_keys=["x", *outputs])
    pipeline.add_dynamic_item(str, "x", "old")
    pipeline.add_dynamic_item(lambda x: x + 1, "x", "x")
    pipeline.add_dynamic_item(lambda x: x * 10, "x", "x")
    pipeline.add_dynamic_item(str, "x", "new")
    for clone in (pipeline, pipeline.copy(), copy.deepcopy(pipeline)):
        assert clone({"x": 1}) == {"x": 20, "old": "1", "new": "20"}


def test_a_custom_item_may_replace_its_key():
    """A subclass with an overridden method gets the value that it took."""

    class Doubled(DynamicItem):
        def next_takes(self):
            return list(self.takes)

    pipeline = DataPipeline(["x"], output_keys=["x"])
    pipeline.add_dynamic_item(lambda x: x + 1, "x", "x")
    pipeline.add_dynamic_item(Doubled(["x"], lambda x: 2 * x, ["x"]))
    assert pipeline({"x": 1}) == {"x": 4}


def test_an_error_on_a_replaced_key_names_the_key_of_the_recipe():
    """Versioned keys do not appear in messages."""
    pipeline = DataPipeline(["id", "x"], output_keys=["x"])
    pipeline.add_dynamic_item(lambda x: x + 1, "x", "x")
    pipeline.add_dynamic_item(lambda x: x / 0, "x", "x")
    with pytest.raises(DataItemError, match=r"Item 'x' of row 7: .*failed on \(x=2\)"):
        pipeline({"id": 7, "x": 1})


def test_an_item_that_provides_one_key_twice_is_refused():
    """The second value would hide the first."""
    pipeline = DataPipeline(["x"])
    with pytest.raises(ValueError, match="named twice"):
        pipeline.add_dynamic_item(abs, "x", ["y", "y"])


def test_a_type_error_of_add_dynamic_item_is_not_swallowed():
    """A misspelt entry of a mapping is named (SpeechBrain tries again and raises another error)."""
    with pytest.raises(TypeError, match="provide"):
        DataPipeline(["x"], [{"func": abs, "takes": "x", "provide": "y"}])


def test_an_item_that_is_not_callable_is_refused():
    """A string instead of a function is found when it is added."""
    with pytest.raises(TypeError, match=r"needs a function.*'abs'"):
        DataPipeline(["x"]).add_dynamic_item("abs", "x", "y")


def test_an_item_that_provides_nothing_is_refused():
    """It could never be requested."""
    with pytest.raises(ValueError, match="provides none"):
        DataPipeline(["x"]).add_dynamic_item(abs, "x")


def test_keys_for_an_item_that_has_its_own_are_refused():
    """It would be ambiguous which of the two apply."""
    item = takes("x")(provides("y")(abs))
    with pytest.raises(ValueError, match="leave these out"):
        DataPipeline(["x"]).add_dynamic_item(item, takes="x")


def test_items_that_depend_on_each_other_are_refused():
    """The error shows the cycle."""
    pipeline = DataPipeline(["x"], [], ["a"])
    pipeline.add_dynamic_item(abs, "b", "a")
    pipeline.add_dynamic_item(abs, "a", "b")
    with pytest.raises(CircularDependencyError, match="a -> b -> a"):
        pipeline({"x": 1})


def test_an_unknown_output_is_named_with_the_nearest_key():
    """A misspelt output key is found at the first row."""
    pipeline = DataPipeline(["wav", "text"], [], ["wave"])
    with pytest.raises(UnknownKeyError, match=r"'wave' \(did you mean 'wav'\?\)"):
        pipeline({"wav": 1, "text": 2})


def test_a_key_that_no_item_provides_is_named_with_the_item_that_takes_it():
    """A misspelt argument key is found at the first row."""
    pipeline = DataPipeline(["wav"], [{"func": abs, "takes": "wave", "provides": "y"}], ["y"])
    with pytest.raises(RuntimeError, match=r"abs\(\) takes 'wave' \(did you mean 'wav'\?\)"):
        pipeline({"wav": 1})


def test_a_row_without_a_key_is_named():
    """Rows after the first may lack a key; the error names row and file."""
    pipeline = DataPipeline(["id", "x"], [{"func": abs, "takes": "x", "provides": "y"}], ["y"])
    pipeline.source = "train.json"
    with pytest.raises(DataItemError, match=r"row 'r2' of train.json lacks 'x'"):
        pipeline({"id": "r2"})
    pipeline.set_output_keys(["x"])
    with pytest.raises(DataItemError, match=r"the outputs need; row 'r2' of train.json lacks 'x'"):
        pipeline({"id": "r2"})


def test_a_function_that_fails_is_named_with_its_item_and_row():
    """The function's own error is the cause."""

    def load(path):
        raise FileNotFoundError(2, "No such file", path)

    pipeline = DataPipeline(["id", "path"], [], ["wav"])
    pipeline.source = "train.csv"
    pipeline.add_dynamic_item(functools.partial(load), "path", "wav")
    with pytest.raises(DataItemError) as caught:
        pipeline({"id": "r1", "path": "/no/a.wav"})
    text = str(caught.value)
    for part in (
        "Item 'wav' of row 'r1' of train.csv",
        "load() (",
        "test_pipeline.py",
        "/no/a.wav",
    ):
        assert part in text
    assert isinstance(caught.value.__cause__, FileNotFoundError)


def test_a_key_error_of_the_function_is_not_reported_as_a_missing_key():
    """A word that is not in the vocabulary is an error of the function."""
    pipeline = DataPipeline(["id", "x"], [], ["y"])
    pipeline.add_dynamic_item({}.__getitem__, "x", "y")
    with pytest.raises(DataItemError, match=r"failed on \(x='word'\): KeyError: 'word'"):
        pipeline({"id": "r1", "x": "word"})


@pytest.mark.parametrize("values", [(1,), (1, 2, 3)])
def test_a_wrong_number_of_values_is_an_error(values):
    """Neither a value nor a key is dropped silently."""
    pipeline = DataPipeline(["x"], [], ["a"])
    pipeline.add_dynamic_item(lambda _: values, "x", ["a", "b"])
    with pytest.raises(DataItemError, match="must return 2 values"):
        pipeline({"x": 1})


@pytest.mark.parametrize("function", [int, lambda x: int(x)])  # noqa: PLW0108
def test_a_value_error_of_the_function_is_not_reported_as_a_wrong_number(function):
    """Only unpacking in the pipeline concerns the number of values."""
    pipeline = DataPipeline(["x"], [], ["a"])
    pipeline.add_dynamic_item(function, "x", ["a", "b"])
    with pytest.raises(DataItemError, match="ValueError: invalid literal"):
        pipeline({"x": "no"})


def test_one_value_for_two_keys_is_an_error():
    """A number cannot be unpacked."""
    pipeline = DataPipeline(["x"], [], ["a"])
    pipeline.add_dynamic_item(abs, "x", ["a", "b"])
    with pytest.raises(DataItemError, match="must return 2 values"):
        pipeline({"x": 1})


def test_a_generator_with_too_few_yields_is_an_error():
    """The error names how many are needed."""
    pipeline = DataPipeline(["text"], [], ["c"])
    pipeline.add_dynamic_item(lengths_of, "text", ["a", "b", "c"])
    with pytest.raises(DataItemError, match="must yield 3 times"):
        pipeline({"text": "x"})


def test_the_pipeline_works_after_a_row_that_failed():
    """A generator that an error interrupted does not affect the next row."""

    def halves(x):
        yield x
        yield 1 / x

    pipeline = DataPipeline(["x"], [], ["a", "b"])
    pipeline.add_dynamic_item(halves, "x", ["a", "b"])
    with pytest.raises(DataItemError, match="ZeroDivisionError"):
        pipeline({"x": 0})
    assert pipeline({"x": 2}) == {"a": 2, "b": 0.5}
