"""Every saved type comes back as it was, without code from the file; other types are refused."""

import collections
import datetime as dt
import decimal
import enum
import fractions
import io
import logging
import pathlib
import random
import types
import uuid
import zoneinfo

import numpy as np
import pytest
import torch

from brain_ckpt import Checkpointer, CheckpointSaveError, UnsafeCheckpointError

ZONE = dt.timezone(dt.timedelta(hours=2), "summer")
STRUCTURE = np.dtype([("a", "<i4"), ("b", "<f8", (2,))])
GENERATORS = [np.random.PCG64, np.random.MT19937, np.random.Philox, np.random.SFC64]

RESTORED = {
    "None": None,
    "bool": True,
    "int": 2**100,
    "float": float("inf"),
    "complex": 1 + 2j,
    "str": "ünï",
    "bytes": b"\x00\xff",
    "bytearray": bytearray(b"xy"),
    "list": [1, [2.5, "a"]],
    "tuple": (1, (2,), []),
    "dict": {"a": 1, 2: "b", (1, "x"): None},
    "OrderedDict": collections.OrderedDict(b=1, a=2),
    "Counter": collections.Counter("abca"),
    "defaultdict": collections.defaultdict(list, {"a": [1]}),
    "defaultdict without factory": collections.defaultdict(None, {"a": 1}),
    "deque": collections.deque([1, 2], maxlen=5),
    "deque without limit": collections.deque([(1, "a")]),
    "set": {1, "a", (2, 3)},
    "set of paths": {pathlib.Path("a"), pathlib.Path("b")},
    "frozenset": frozenset({1, 2}),
    "range": range(1, 20, 3),
    "slice": slice(1, None, 2),
    "Ellipsis": ...,
    "date": dt.date(2026, 1, 2),
    "datetime": dt.datetime(2026, 1, 2, 3, 4, 5, 6),  # noqa: DTZ001 - naive on purpose
    "datetime with a zone": dt.datetime(2026, 1, 2, tzinfo=ZONE),
    "datetime in a fold": dt.datetime(2026, 1, 2, tzinfo=dt.timezone.utc, fold=1),
    "time": dt.time(1, 2, 3, 4),
    "timedelta": dt.timedelta(days=-1, seconds=3, microseconds=5),
    "timezone": ZONE,
    "ZoneInfo": zoneinfo.ZoneInfo("UTC"),
    "Path": pathlib.Path("/a/b.txt"),
    "PurePosixPath": pathlib.PurePosixPath("a/b"),
    "PureWindowsPath": pathlib.PureWindowsPath("c:/a"),
    "Decimal": decimal.Decimal("1.10"),
    "Decimal NaN": decimal.Decimal("-Infinity"),
    "Fraction": fractions.Fraction(-1, 3),
    "UUID": uuid.UUID(int=5),
    "SimpleNamespace": types.SimpleNamespace(a=1, b=np.float32(2)),
    "tensor": torch.arange(6.0).reshape(2, 3),
    "bfloat16 tensor": torch.ones(2, dtype=torch.bfloat16),
    "Parameter": torch.nn.Parameter(torch.ones(2)),
    "torch dtype": torch.float16,
    "torch device": torch.device("cpu"),
    "torch Size": torch.Size([1, 2]),
    **{
        f"array of {dtype}": np.array([1, 0, 3], dtype=dtype)
        for dtype in ("?", "i1", "u2", "i4", "u8", "f2", "f4", "f8", "c8", "c16", "g", ">i4", ">f8")
    },
    "array of strings": np.array(["a", "bcd", ""]),
    "array of bytes": np.array([b"a", b"bcd"]),
    "array of datetimes": np.array(["2026-01-01", "NaT"], dtype="M8[D]"),
    "array of timedeltas": np.array([1, 2], dtype="m8[ms]"),
    "structured array": np.array([(1, (2.0, 3.0))], dtype=STRUCTURE),
    "array of objects": np.array([1, "a", [2, 3], None, np.float32(1)], dtype=object),
    "array in Fortran order": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "strings in Fortran order": np.asfortranarray(np.array([["a", "b", "c"], ["d", "e", "f"]])),
    "array without dimensions": np.array(3.5),
    "empty array": np.zeros((0, 3)),
    "empty array of strings": np.zeros((0, 3), dtype="U2"),
    "sliced array": np.arange(10)[::-2],
    "read-only array": np.broadcast_to(np.float64(1), (2, 2)),
    **{
        f"scalar {type(value).__name__}": value
        for value in (
            *(np.float64(0.1), np.float32(0.1), np.float16(0.1), np.longdouble(1) / 3),
            *(np.int64(-1), np.uint8(255), np.bool_(1), np.complex64(1j), np.str_("a")),
            *(np.bytes_(b"a"), np.datetime64("2026-01-01"), np.timedelta64(3, "s")),
            np.array([(1, (2.0, 3.0))], dtype=STRUCTURE)[0],
        )
    },
    "NumPy dtype": np.dtype("<f4"),
    "NumPy structure": STRUCTURE,
    "NumPy keys": {np.int64(1): "a", np.str_("k"): 2},
    "Counter with NumPy keys": collections.Counter({np.int64(1): 5}),
    "dates as keys": {dt.date(2026, 1, 2): 0.5},
    **{f"state of {cls.__name__}": cls(1).state for cls in GENERATORS},
    "state of NumPy's generator": np.random.get_state(),
    "state of RandomState": np.random.RandomState(1).get_state(legacy=False),
    "state of random.Random": random.Random(1).getstate(),
    "state of torch.Generator": torch.Generator().manual_seed(1).get_state(),
    "nested": {"history": [{"when": dt.date(2026, 1, 2), "loss": np.float32(0.5)}] * 2},
}


@pytest.fixture
def save_and_load(tmp_path, states):
    """Return a function that saves a state and returns it from a new checkpointer."""

    def run(state, **options):
        Checkpointer(tmp_path, {"holder": states.Holder(state)}, **options).save_checkpoint()
        holder = states.Holder()
        Checkpointer(tmp_path, {"holder": holder}, **options).recover_if_possible()
        return holder.state

    return run


@pytest.mark.parametrize("name", RESTORED)
def test_a_type_comes_back_as_it_was(name, save_and_load, states):
    """In a dict, with a value of the same type, layout and content."""
    loaded = save_and_load({"before": 1, "value": RESTORED[name], "after": [2]})
    assert states.same(loaded, {"before": 1, "value": RESTORED[name], "after": [2]})


@pytest.mark.parametrize("name", ["list", "tuple", "array of f4", "scalar float64", "Path"])
def test_a_state_need_not_be_a_dict(name, save_and_load, states):
    """The state as a whole comes back as it was."""
    assert states.same(save_and_load(RESTORED[name]), RESTORED[name])


def test_all_types_come_back_asynchronously_and_for_each_rank(tmp_path, states):
    """Copies of the state and states of ranks are encoded, too."""
    options = {"asynchronous": True}
    checkpointer = Checkpointer(tmp_path, {"holder": states.Holder(RESTORED)}, **options)
    checkpointer.add_recoverable("rank", states.Holder(RESTORED), per_rank=True)
    checkpointer.save_checkpoint()
    checkpointer.close()
    holder, rank = states.Holder(), states.Holder()
    again = Checkpointer(tmp_path, {"holder": holder})
    again.add_recoverable("rank", rank, per_rank=True)
    again.recover_if_possible()
    assert states.same(holder.state, RESTORED)
    assert states.same(rank.state, RESTORED)


def test_an_array_is_copied_at_the_save(tmp_path, states):
    """A later change of the array does not reach an asynchronous save."""
    array = np.zeros(1000)
    checkpointer = Checkpointer(tmp_path, {"h": states.Holder({"a": array})}, asynchronous=True)
    checkpointer.save_checkpoint()
    array[:] = 1
    checkpointer.close()
    holder = states.Holder()
    Checkpointer(tmp_path, {"h": holder}).recover_if_possible()
    assert not holder.state["a"].any()
    holder.state["a"][:] = 2  # it is writable


def test_a_module_restores_its_extra_state(tmp_path):
    """Metadata of the state dict is kept beside the type notes."""

    class Module(torch.nn.Linear):
        def __init__(self):
            super().__init__(2, 1)
            self.history = np.arange(3)

        def get_extra_state(self):
            return {"history": self.history, "path": pathlib.Path("a")}

        def set_extra_state(self, state):
            self.history = state["history"]

    saved, loaded = Module(), Module()
    saved.history = np.arange(5)
    path = Checkpointer(tmp_path, {"model": saved}).save_checkpoint().path
    assert torch.load(path / "model.ckpt", weights_only=True)._metadata
    Checkpointer(tmp_path, {"model": loaded}).recover_if_possible()
    assert loaded.history.tolist() == [0, 1, 2, 3, 4]
    assert torch.equal(loaded.weight, saved.weight)


def test_a_lazy_module_is_restored_before_its_first_batch(tmp_path):
    """Its parameters have no shape yet."""
    checkpointer = Checkpointer(tmp_path, {"model": torch.nn.LazyLinear(2)})
    checkpointer.check_restorable()
    checkpointer.save_checkpoint()
    model = torch.nn.LazyLinear(2)
    Checkpointer(tmp_path, {"model": model}).recover_if_possible()
    assert model(torch.ones(1, 3)).shape == (1, 2)


def test_torch_and_speechbrain_read_plain_values(tmp_path, states):
    """torch's safe loader, which SpeechBrain calls, finds numbers, tensors and lists."""
    state = {
        "lr": np.float64(0.1),
        "weights": np.arange(3.0),
        "path": pathlib.Path("a"),
        "when": dt.date(2026, 1, 2),
    }
    path = Checkpointer(tmp_path, {"h": states.Holder(state)}).save_checkpoint().path
    read = torch.load(path / "h.ckpt", weights_only=True)
    assert (read["lr"], read["path"], read["when"]) == (0.1, "a", [2026, 1, 2])
    assert type(read["lr"]) is float
    assert torch.equal(read["weights"], torch.arange(3.0, dtype=torch.float64))


class Color(enum.IntEnum):
    RED = 1


class Flags(enum.Flag):
    A = 1
    B = 2


Point = collections.namedtuple("Point", "x y")  # noqa: PYI024 - the type in question


class Config:
    def __init__(self, lr):
        self.lr, self.history = lr, np.arange(2)

    def __eq__(self, other):
        return self.lr == other.lr and self.history.tolist() == other.history.tolist()

    __hash__ = None


class Slots:
    __slots__ = ("value",)

    def __init__(self, value):
        self.value = value

    def __eq__(self, other):
        return self.value == other.value

    __hash__ = None


class Items(list):
    """A list with an attribute."""


class Table(dict):
    """A dict of one's own."""


def make_items():
    items = Items([1, np.float32(2)])
    items.name = "a"
    return items


REGISTERED = {
    "enum": (Color.RED, Color),
    "flag": (Flags.A | Flags.B, Flags),
    "namedtuple": (Point(1, np.float32(2)), Point),
    "object": (Config(0.1), Config),
    "object with slots": (Slots([1]), Slots),
    "list subclass": (make_items(), Items),
    "dict subclass": (Table(a=1), Table),
    "class": (Config, Config),
    "function": (make_items, make_items),
    "generator": (random.Random(3), random.Random),
}


@pytest.mark.parametrize("name", REGISTERED)
@pytest.mark.parametrize("way", ["argument", "torch"])
def test_a_registered_class_comes_back(name, way, save_and_load):
    """It is passed to the checkpointer, or registered with torch."""
    value, cls = REGISTERED[name]
    if way == "argument":
        loaded = save_and_load({"value": value}, safe_globals=[cls])["value"]
    else:
        with torch.serialization.safe_globals([cls]):
            loaded = save_and_load({"value": value})["value"]
    assert type(loaded) is type(value)
    same = loaded.random() == random.Random(3).random() if name == "generator" else loaded == value
    assert same
    assert getattr(loaded, "name", None) == getattr(value, "name", None)


@pytest.mark.parametrize("name", REGISTERED)
def test_an_unregistered_class_is_refused_when_it_is_saved(name, save_and_load):
    """Nothing is published."""
    with pytest.raises(CheckpointSaveError, match=r"got holder\.value"):
        save_and_load({"value": REGISTERED[name][0]})


def test_a_class_that_is_no_longer_registered_is_named(tmp_path, states):
    """The error says how to register it."""
    holder = states.Holder({"value": Config(0.1)})
    Checkpointer(tmp_path, {"h": holder}, safe_globals=[Config]).save_checkpoint()
    with pytest.raises(UnsafeCheckpointError, match=r"got '.*\.Config'; pass it in"):
        Checkpointer(tmp_path, {"h": holder}).recover_if_possible()


def test_a_class_can_be_registered_under_its_old_name(tmp_path, states):
    """A renamed class restores files with its old name."""
    holder = states.Holder({"value": Slots(1)})
    Checkpointer(tmp_path, {"h": holder}, safe_globals=[(Slots, "old.Name")]).save_checkpoint()
    holder.state = None
    renamed = Checkpointer(tmp_path, {"h": holder}, safe_globals=[(Slots, "old.Name")])
    renamed.recover_if_possible()
    assert holder.state == {"value": Slots(1)}


def test_safe_globals_are_classes_and_functions(tmp_path):
    """An instance is a mistake."""
    with pytest.raises(TypeError, match="safe_globals must be classes or functions, got 3"):
        Checkpointer(tmp_path, safe_globals=[3])


class Strange(torch.Tensor):
    """A tensor subclass that torch's safe loader does not know."""


def cyclic():
    value = []
    value.append(value)
    return value


REFUSED = {
    "function": (print, r"builtins\.print"),
    "lambda": (lambda: 0, r"<lambda>"),
    "open file": (io.StringIO(), "StringIO"),
    "logger": (logging.getLogger("a"), r"logging\.Logger"),
    "masked array": (np.ma.array([1], mask=[0]), "MaskedArray"),
    "record array": (np.rec.array([(1,)], dtype=[("a", "i4")]), "recarray"),
    "array with object fields": (np.zeros(1, dtype=[("a", "O")]), r"numpy\.ndarray"),
    "generator of NumPy": (np.random.default_rng(1), "Generator"),
    "generator of torch": (torch.Generator(), "Generator"),
    "defaultdict with a lambda": (collections.defaultdict(lambda: 0), "defaultdict"),
    "tensor subclass": (torch.ones(1).as_subclass(Strange), "Strange"),
    "cycle": (cyclic(), "list"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_type_that_could_not_be_restored_is_refused_at_the_save(name, tmp_path, states):
    """The error has recoverable, path, type and advice; nothing is written."""
    value, kind = REFUSED[name]
    state = {"groups": [{"lr": 0.1}, {"fn": value}]}
    checkpointer = Checkpointer(tmp_path, {"opt": states.Holder(state)})
    text = rf"'opt' must hold .*got opt\.groups\[1\]\.fn.* \(.*{kind}.*\); return plain values"
    with pytest.raises(CheckpointSaveError, match=text):
        checkpointer.save_checkpoint()
    assert [path.name for path in tmp_path.iterdir()] == [".brain.lock"]


def test_several_refused_values_are_counted(tmp_path, states):
    """The first three are named."""
    checkpointer = Checkpointer(tmp_path, {"h": states.Holder([print] * 5)})
    with pytest.raises(CheckpointSaveError, match=r"h\[0\].*h\[1\].*h\[2\].*and 2 more"):
        checkpointer.save_checkpoint()


def test_states_are_checked_without_a_save(tmp_path, states):
    """check_restorable raises what a save would, and writes nothing."""
    holder = states.Holder({"fn": print})
    checkpointer = Checkpointer(tmp_path, {"h": holder, "model": torch.nn.Linear(1, 1)})
    with pytest.raises(CheckpointSaveError, match=r"h\.fn \(builtins\.print\)"):
        checkpointer.check_restorable()
    holder.state = RESTORED
    checkpointer.check_restorable()
    assert list(tmp_path.iterdir()) == []


def test_the_file_of_a_custom_saver_is_checked(tmp_path, states):
    """It is loaded as a state, so the safe loader must read it."""
    checkpointer = Checkpointer(
        tmp_path,
        {"h": states.Holder()},
        custom_save_hooks={"h": lambda obj, path: torch.save({"fn": print}, path)},
    )
    with pytest.raises(CheckpointSaveError, match=r"got builtins\.print; save plain values"):
        checkpointer.save_checkpoint()
    assert [path.name for path in tmp_path.iterdir()] == [".brain.lock"]


def test_a_state_is_not_changed_by_its_save(tmp_path, states):
    """Only the saved copy is encoded."""
    inner = [np.float64(1)]
    state = collections.OrderedDict(a=inner)
    Checkpointer(tmp_path, {"h": states.Holder(state)}).save_checkpoint()
    assert state["a"] is inner
    assert type(inner[0]) is np.float64
    assert vars(state) == {}


def test_schedulers_with_callables_are_restored(tmp_path):
    """The attributes of a callable object are its state, and a function has none."""

    class Warmup:
        def __init__(self):
            self.steps = np.int64(3)

        def __call__(self, step):
            return min(1.0, (step + 1) / float(self.steps))

    def scheduler(steps):
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1.0)
        warmup = Warmup()
        warmup.steps = np.int64(steps)
        return torch.optim.lr_scheduler.LambdaLR(optimizer, warmup)

    Checkpointer(tmp_path, {"scheduler": scheduler(7)}).save_checkpoint()
    loaded = scheduler(3)
    Checkpointer(tmp_path, {"scheduler": loaded}).recover_if_possible()
    assert loaded.lr_lambdas[0].steps == 7
    assert type(loaded.lr_lambdas[0].steps) is np.int64
