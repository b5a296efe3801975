"""Programs for brain-data; see `parity`."""

from __future__ import annotations

import itertools
import json
import os
import tempfile

import numpy as np
import torch

PROGRAMS = {}


def program(function):
    """Add a program."""
    PROGRAMS[function.__name__] = function
    return function


def rows_of(draw, most=6):
    """Draw the number of rows."""
    return draw.choice([1, 1, 2, 3, draw.randint(1, most)])


@program
def batch_pad_right(draw, lib):
    """Tensors of zero to three dimensions, of several types and modes."""
    rest = [draw.randint(1, 3) for _ in range(draw.randint(0, 2))]
    kind = draw.choice(["int", "float"])
    tensors = [draw.tensor(draw.randint(0, 6), *rest, kind=kind) for _ in range(rows_of(draw))]
    if draw.random() < 0.1:
        tensors = [draw.tensor(*tensors[0].shape) for _ in tensors]
    if draw.random() < 0.1:
        tensors = [torch.tensor(draw.random()) for _ in tensors]  # of no dimension
    options = {}
    if draw.random() < 0.6:
        options["value"] = draw.choice([0, 1, -100, 0.5, draw.number(3), draw.number(-1.5), True])
    if draw.random() < 0.2:
        options["mode"] = draw.choice(["constant", "replicate", "reflect", "circular"])
    return lib.batch_pad_right(draw.listed(tensors), **options)


@program
def undo_padding(draw, lib):
    """Lengths as a vector or a column of a tensor, on several types, or as a list of tensors."""
    rows, time = rows_of(draw), draw.randint(1, 9)
    batch = draw.tensor(
        rows, time, *([2] * (draw.random() < 0.2)), kind=draw.choice(["int", "float"])
    )
    counts = [draw.randint(0, time) for _ in range(rows)]
    lengths = torch.tensor(counts) / time
    if draw.random() < 0.3:
        lengths = lengths.to(draw.choice([torch.float64, torch.float16, torch.bfloat16]))
    form = draw.choice(["vector", "vector", "column", "list", "tuple"])
    if form == "column":
        lengths = lengths.unsqueeze(1)
    elif form in {"list", "tuple"}:
        lengths = [list, tuple][form == "tuple"](lengths)
    if draw.random() < 0.1:
        batch = batch.requires_grad_() if batch.is_floating_point() else batch
    return lib.undo_padding(batch, lengths)


def value_of(draw, kind, row):
    """Draw a value of a row."""
    length = draw.randint(1, 4)
    return {
        "id": f"row{row}",
        "text": ["a", "b"] * length,
        "empty": [],
        "int": draw.randint(-5, 5),
        "big": 2**70,
        "float": draw.random(),
        "bool": draw.random() < 0.5,
        "none": None,
        "tensor": torch.arange(length) + row,
        "matrix": torch.ones(length, 2) * row,
        "same": torch.tensor([row, 1.5]),
        "scalar": torch.tensor(row),
        "array": np.arange(length, dtype=np.float32) + row,
        "array0": np.asarray(row),
        "npfloat": np.float32(row),
        "npint": np.int64(row),
        "strings": np.array(["x", "y"]),
        "dict": {"x": np.arange(2), "n": row},
        "list": [np.arange(2), row],
        "tuple": (1, "a"),
        "bytes": b"x",
    }[kind]


# Without mixed numbers: they get one type here, and in SpeechBrain that of the first row.
KINDS = ("id", "text", "int", "float", "bool", "tensor", "matrix", "same", "array")
OTHER_KINDS = (  # with some of them SpeechBrain fails
    *("empty", "big", "strings", "dict", "list", "tuple", "bytes", "none"),
    *("scalar", "array0", "npint", "npfloat"),
)


@program
def PaddedBatch(draw, lib):  # noqa: N802 - named as what it tries
    """Rows of every kind of value, all options, moved and cast."""
    kinds = draw.sample(KINDS, draw.randint(1, 5))
    kinds += draw.sample(OTHER_KINDS, draw.choice([0, 0, 1]))
    count = rows_of(draw)
    if count == 1:  # SpeechBrain pads a number if it is the only row, and fails with several
        kinds = [kind for kind in kinds if kind not in {"scalar", "array0", "npint", "npfloat"}]
    kinds = kinds or ["id"]
    rows = [{kind: value_of(draw, kind, row) for kind in kinds} for row in range(count)]
    options = {}
    if draw.random() < 0.3:
        options["padded_keys"] = draw.listed(draw.sample(kinds, draw.randint(0, len(kinds))))
    if draw.random() < 0.3:
        options["device_prep_keys"] = draw.listed(draw.sample(kinds, draw.randint(0, len(kinds))))
    if draw.random() < 0.3:
        options["padding_kwargs"] = {"value": draw.choice([0, 1, -100])}
    if draw.random() < 0.2:
        options["per_key_padding_kwargs"] = {kinds[0]: {"value": 7}}
    if draw.random() < 0.2:
        options["apply_default_convert"] = False
    if draw.random() < 0.2:
        options["nonpadded_stack"] = False
    return describe(draw, lib.PaddedBatch(rows, **options), kinds[-1])


def describe(draw, batch, last):
    """Return what a batch holds, as it is or moved."""
    form = draw.choice(["as is", "device", "cast", "keyword"])
    if form == "device":
        batch = batch.to("cpu")
    elif form == "cast":
        batch = batch.to(torch.float64)
    elif form == "keyword":
        batch = batch.to(device=torch.device("cpu"), non_blocking=True)
    values = list(batch)
    if form == "cast":  # lengths and whole numbers are not cast here
        values = [value.data if hasattr(value, "lengths") else value for value in values]
        return [value.shape for value in values if isinstance(value, torch.Tensor)]
    data = [tuple(value) if hasattr(value, "lengths") else value for value in values]
    return data, len(batch), batch.batchsize, batch[last] is values[-1]


@program
def PaddedData(draw, lib):  # noqa: N802
    """By position and by name; as a tuple."""
    pair = (draw.tensor(2, 3), torch.tensor([0.5, 1.0]))
    made = (
        lib.PaddedData(*pair)
        if draw.random() < 0.5
        else lib.PaddedData(data=pair[0], lengths=pair[1])
    )
    data, lengths = made
    changed = made._replace(data=data + 1)
    return data, lengths, made[0], made._fields, made._asdict(), tuple(changed), len(made)


@program
def BatchsizeGuesser(draw, lib):  # noqa: N802
    """Batches of every form, in a row."""
    guesser = lib.BatchsizeGuesser()
    forms = [
        lambda: draw.tensor(3, 2),
        lambda: [draw.tensor(2, 2), draw.tensor(1)],
        lambda: (draw.tensor(4),),
        lambda: lib.PaddedBatch([{"a": torch.ones(2)}] * 3),
        lambda: "text",
        lambda: [[1, 2, 3]],
        lambda: np.ones((2, 3)),
        lambda: torch.tensor(1.0),
        lambda: None,
        lambda: 3,
    ]
    return [guesser(draw.choice(forms)()) for _ in range(draw.randint(1, 3))]


def written(text, suffix):
    """Return the path of a new file with a text."""
    handle, path = tempfile.mkstemp(suffix)
    with open(handle, "w", encoding="utf-8", newline="") as file:
        file.write(text)
    return path


@program
def load_data_csv(draw, lib):
    """Quotes, spaces, replacements, durations, line ends; a path as text or object."""
    columns = ["ID", *draw.sample(["duration", "wav", "text", "n"], draw.randint(0, 4))]
    cells = ["$root/x.wav", '"a, b"', "", " spaced", "$root$other", "plain", "${root}", "$ 5"]
    lines = [draw.choice([",", ", "]).join(columns)]
    for row in range(draw.randint(0, 4)):
        values = [str(row) if draw.random() < 0.95 else "0"]
        values += [
            draw.choice(["1", "1.5", " 2", "1e3"]) if name == "duration" else draw.choice(cells)
            for name in columns[1:]
        ]
        lines.append(",".join(values))
    newline = draw.choice(["\n", "\r\n"])
    path = written(newline.join(lines) + newline * (draw.random() < 0.8), ".csv")
    replacements = draw.choice([None, {"root": "/data", "other": 3}, {"root": 1.5, "other": None}])
    try:
        data = lib.load_data_csv(path, replacements)
        return {key: dict(row) for key, row in data.items()}
    finally:
        os.unlink(path)


@program
def load_data_json(draw, lib):
    """Nested values, replacements, braces."""

    def value(depth=0):
        forms = [lambda: "{root}/a", lambda: draw.randint(0, 9), lambda: 1.5, lambda: None]
        forms += [lambda: "plain", lambda: True, lambda: "{other}{root}", lambda: "{{x}}"]
        if depth < 3:
            forms += [lambda: [value(depth + 1) for _ in range(draw.randint(0, 3))]] * 2
            forms += [lambda: {k: value(depth + 1) for k in draw.sample("abc", 2)}] * 2
        return draw.choice(forms)()

    data = {str(row): {"x": value(), "y": value()} for row in range(draw.randint(0, 3))}
    path = written(json.dumps(data), ".json")
    try:
        return lib.load_data_json(path, draw.choice([None, {"root": "/d", "other": 1}]))
    finally:
        os.unlink(path)


def pipeline_parts(draw, lib):
    """Return rows, and functions with what they take and provide."""
    takes, provides = lib.takes, lib.provides

    @takes("n")
    @provides("double")
    def double(n):
        return 2 * n

    @takes("n", "text")
    @provides("first", "second")
    def generator(n, text):
        yield n + 1
        yield f"{text}{n}"

    @takes("double", "first")
    @provides("sum")
    def total(double, first):
        return double + first

    def plain(text):
        return text.upper()

    rows = {
        f"id{i}": {
            "n": draw.randint(0, 9),
            "text": draw.choice("xyz"),
            "duration": draw.random() * 9,
        }
        for i in range(draw.randint(1, 8))
    }
    return rows, [double, generator, total], plain


OUTPUTS = ["id", "n", "text", "double", "first", "second", "sum", "upper"]


def add_plain(draw, target, plain):
    """Add a function with its keys given in one of the forms."""
    keys = draw.choice(["text", ["text"], ("text",)])
    given = draw.choice(["upper", ["upper"], ("upper",)])
    if draw.random() < 0.5:
        target(plain, keys, given)
    else:
        target(plain, takes=keys, provides=given)


def outputs_of(draw):
    """Draw output keys, as a list, a tuple or a mapping."""
    keys = draw.sample(OUTPUTS, draw.randint(1, 4))
    return draw.choice([keys, tuple(keys), {f"out_{key}": key for key in keys}])


@program
def DataPipeline(draw, lib):  # noqa: N802
    """Static and dynamic items, in every form that keys take."""
    rows, functions, plain = pipeline_parts(draw, lib)
    pipeline = lib.DataPipeline(draw.listed(["id", "n", "text", "duration"]))
    for function in draw.sample(functions, 3):
        pipeline.add_dynamic_item(function)
    add_plain(draw, pipeline.add_dynamic_item, plain)
    pipeline.set_output_keys(outputs_of(draw))
    data = [{"id": key, **row} for key, row in rows.items()]
    specific = pipeline.compute_specific(draw.sample(OUTPUTS, 2), data[0])
    return [pipeline(row) for row in data], pipeline.compute_outputs(data[0]), specific


@program
def dynamic_items(draw, lib):
    """Items called by hand: a function, a generator, and again after a reset."""
    made = []
    item = lib.DynamicItem(draw.listed(["a"]), lambda a: a + 1, draw.listed(["b"]))
    made.append([item(1), item.next_takes(), item.next_provides(), item.provided_in_order()])
    item.reset()

    @lib.takes("a")
    @lib.provides("b", ["c", "d"])
    def generator(a):
        b = yield a
        yield b, a

    try:
        out = [generator.next_takes(), generator.next_provides(), generator(1), generator(2)]
        generator.reset()
        made.append([*out, generator(3), generator.provided_in_order()])
    except TypeError:
        made.append("TypeError")
    static = lib.StaticItem("key") if draw.random() < 0.5 else lib.StaticItem(key="key")
    return made, list(static.provided_in_order()) if hasattr(
        static, "provided_in_order"
    ) else static.key


@program
def DynamicItemDataset(draw, lib):  # noqa: N802
    """Rows, outputs, filters, sorting, overfitting, and what is written about a subset."""
    rows, functions, plain = pipeline_parts(draw, lib)
    arguments = {}
    if draw.random() < 0.3:
        arguments = {"dynamic_items": functions, "output_keys": ["id", "sum"]}
    data = lib.DynamicItemDataset(rows, **arguments)
    if not arguments:
        lib.add_dynamic_item(draw.listed([data]), functions[0])
        for function in functions[1:]:
            data.add_dynamic_item(function)
    add_plain(draw, data.add_dynamic_item, plain)
    keys = outputs_of(draw)
    if draw.random() < 0.5:
        lib.set_output_keys([data], keys)
    else:
        data.set_output_keys(keys)
    return subsets(draw, data, data.filtered_sorted(**filters(draw)))


def filters(draw):
    """Draw arguments of ``filtered_sorted``."""
    options = {}
    if draw.random() < 0.5:
        options["key_min_value"] = {"n": draw.number(draw.randint(0, 5))}
    if draw.random() < 0.5:
        options["key_max_value"] = {"duration": draw.number(draw.uniform(2, 9))}
    if draw.random() < 0.3:
        options["key_test"] = {"double": lambda x: x % 4 == 0}
    if draw.random() < 0.6:
        options["sort_key"] = draw.choice(["n", "duration", "sum", "text", "second"])
        options["reverse"] = draw.choice([False, 0])
    elif draw.random() < 0.5:  # without equal values, whose order SpeechBrain reverses, too
        options |= {"sort_key": "duration", "reverse": draw.choice([True, 1])}
    if draw.random() < 0.3:
        options["select_n"] = draw.choice([0, 1, 3, 100, None])
    return options


def subsets(draw, data, chosen):
    """Return the rows of a data set, of a chosen part, and of others."""
    results = [len(data), list(data.data_ids), [data[i] for i in range(len(data))]]
    results += [list(chosen.data_ids), [chosen[i] for i in range(len(chosen))]]
    if draw.random() < 0.3:
        index = draw.choice([np.int64(0), torch.tensor(0), -1, np.asarray(0)])
        results.append(data[index])
    if draw.random() < 0.3:
        small = data.overfit_test(draw.randint(1, min(2, len(data))), draw.choice([3, 7]))
        results += [len(small), list(small.data_ids)]
    if draw.random() < 0.3:
        with data.output_keys_as(outputs_of(draw)):
            results.append(data[0])
    return results


@program
def from_files(draw, lib):
    """``from_json`` and ``from_csv`` with their options."""
    rows, functions, _ = pipeline_parts(draw, lib)
    options = {"replacements": draw.choice([None, {}, {"root": "/d"}])}
    if draw.random() < 0.5:
        options["dynamic_items"] = draw.listed(functions)
        options["output_keys"] = draw.choice([["id", "sum"], {"a": "id", "b": "sum"}])
    if draw.random() < 0.5:
        path = written(json.dumps(rows), ".json")
        load = lib.DynamicItemDataset.from_json
    else:
        lines = ["ID,duration,n,text"]
        lines += [f"{k},{v['duration']},{v['n']},{v['text']}" for k, v in rows.items()]
        path = written("\n".join(lines), ".csv")
        load = lib.DynamicItemDataset.from_csv
        if "output_keys" in options:
            options["output_keys"] = ["id", "more"]
            options["dynamic_items"] = [lib.takes("n")(lib.provides("more")(lambda n: int(n) + 1))]
    try:
        data = load(path, **options)
        if "output_keys" not in options:
            data.set_output_keys(["id", "n", "duration"])
        return [data[i] for i in range(len(data))]
    finally:
        os.unlink(path)


def epochs(draw, sampler):
    """Return the orders of some epochs."""
    found = [list(sampler)]
    for epoch in draw.sample(range(5), 2):
        sampler.set_epoch(epoch)
        found.append(list(sampler))
    return found, len(sampler)


@program
def ReproducibleRandomSampler(draw, lib):  # noqa: N802
    """Seeds and numbers of samples in several forms."""
    source = draw.choice([list(range(draw.randint(1, 20))), torch.arange(7), np.arange(5)])
    options = {}
    if draw.random() < 0.6:
        options["seed"] = draw.choice(
            [draw.randint(0, 99), np.int64(3), 7.0, "11", torch.tensor(5)]
        )
    if draw.random() < 0.4:
        options["epoch"] = draw.randint(0, 3)
    if draw.random() < 0.4:
        options |= {"replacement": True, "num_samples": draw.randint(1, 30)}
    elif draw.random() < 0.3:
        options["num_samples"] = draw.randint(1, 30)
    return epochs(draw, lib.ReproducibleRandomSampler(source, **options))


@program
def ReproducibleWeightedRandomSampler(draw, lib):  # noqa: N802
    """Weights in several forms, positional and named arguments."""
    count = draw.randint(1, 8)
    weights = [draw.uniform(0.1, 2) for _ in range(count)]
    weights = draw.choice(
        [list, tuple, np.array, torch.tensor, lambda w: [int(10 * x) + 1 for x in w]]
    )(weights)
    samples = draw.randint(1, count)
    if draw.random() < 0.5:
        sampler = lib.ReproducibleWeightedRandomSampler(weights, samples, draw.random() < 0.5)
    else:
        seed = draw.choice([3, np.int64(4), "5", 6.0])
        sampler = lib.ReproducibleWeightedRandomSampler(
            weights, num_samples=samples, replacement=True, seed=seed, epoch=draw.randint(0, 2)
        )
    return epochs(draw, sampler)


@program
def ConcatDatasetBatchSampler(draw, lib):  # noqa: N802
    """Samplers of several kinds and sizes."""
    count = draw.randint(1, 3)
    sources = [list(range(draw.randint(1, 12))) for _ in range(count)]
    if draw.random() < 0.5:
        samplers = [
            lib.ReproducibleRandomSampler(source, seed=i) for i, source in enumerate(sources)
        ]
    else:
        samplers = [torch.utils.data.SequentialSampler(source) for source in sources]
    sizes = [draw.choice([1, 2, 3, np.int64(2)]) for _ in range(count)]
    return epochs(draw, lib.ConcatDatasetBatchSampler(draw.listed(samplers), draw.listed(sizes)))


@program
def BalancingDataSampler(draw, lib):  # noqa: N802
    """Keys of several types."""
    rows = {
        str(i): {"label": draw.choice(["a", "b", 1]), "w": i % 2}
        for i in range(draw.randint(1, 12))
    }
    data = lib.DynamicItemDataset(rows, output_keys=["id"])
    options = {"replacement": draw.random() < 0.8}
    if draw.random() < 0.5:
        options["num_samples"] = draw.choice([1, 3, None])
    if draw.random() < 0.5:
        options |= {"seed": draw.choice([1, "2"]), "epoch": 1}
    return epochs(draw, lib.BalancingDataSampler(data, draw.choice(["label", "w"]), **options))


@program
def DynamicBatchSampler(draw, lib):  # noqa: N802
    """Buckets, boundaries and orders; shuffled ones with the batches of any order."""
    count = draw.randint(1, 30)
    lengths = [draw.choice([draw.randint(1, 20), draw.uniform(1, 20)]) for _ in range(count)]
    form = draw.choice([list, list, np.array, torch.tensor])
    rows = {str(i): {"duration": float(length)} for i, length in enumerate(lengths)}
    data = lib.DynamicItemDataset(rows, output_keys=["id"])
    options = {
        "shuffle": False,
        "batch_ordering": draw.choice(["ascending", "descending", "random"]),
    }
    if options["batch_ordering"] == "random":
        options["batch_ordering"] = "ascending"
    if draw.random() < 0.7:
        options["lengths_list"] = form(lengths)
    else:
        options["length_func"] = lambda row: row["duration"]
    if draw.random() < 0.6:
        options["num_buckets"] = draw.choice([1, 3, 10, np.int64(4)])
    else:
        bounds = sorted(draw.sample(range(1, 25), draw.randint(1, 4)))
        options["bucket_boundaries"] = draw.choice([list, np.array, tuple])(bounds)
    if draw.random() < 0.3:
        options["max_batch_ex"] = draw.choice([1, 4, np.int64(3)])
    if draw.random() < 0.3:
        options["drop_last"] = True
    longest = draw.choice([25, 40.0, draw.randint(21, 99), np.int64(50)])
    sampler = lib.DynamicBatchSampler(data, longest, **options)
    return sorted(map(sorted, sampler)), len(sampler)


@program
def loaders(draw, lib):
    """``make_dataloader`` with what recipes pass."""
    rows = {str(i): {"x": float(i)} for i in range(draw.randint(1, 12))}
    data = lib.DynamicItemDataset(rows)
    data.add_dynamic_item(lambda x: torch.arange(int(x) % 3 + 1) + x, "x", "t")
    data.set_output_keys(["id", "x", "t"])
    options = {}
    if draw.random() < 0.7:
        options["batch_size"] = draw.choice([1, 2, 5])
    if draw.random() < 0.3:
        options["drop_last"] = True
    if draw.random() < 0.3:
        options["sampler"] = lib.ReproducibleRandomSampler(data, seed=draw.randint(0, 5))
    if draw.random() < 0.3:
        options["collate_fn"] = draw.choice([lib.PaddedBatch, None])
    if draw.random() < 0.2:
        options = {"batch_sampler": [[0], [0, 0]]}
    is_empty = "drop_last" in options and len(rows) < 5  # an error here, if it is looped
    # Ours sets the epoch of a sampler.
    if draw.random() < 0.3 and "sampler" not in options and not is_empty:
        options["looped_nominal_epoch"] = draw.choice([2, 3, np.int64(1)])
    loader = lib.make_dataloader(data, **options)
    found = []
    for _ in range(2):
        for batch in itertools.islice(iter(loader), 20):
            values = [tuple(v) if hasattr(v, "lengths") else v for v in batch]
            found.append(values)
    return found, len(loader)


@program
def distributed_loader_specifics(draw, lib):
    """What it makes of the options of one process."""
    rows = {str(i): {"x": i} for i in range(4)}
    data = lib.DynamicItemDataset(rows, output_keys=["x"])
    options = draw.choice(
        [{}, {"batch_size": 2}, {"batch_size": 2, "drop_last": True}, {"shuffle": False}]
    )
    flags = draw.choice([(False, None), (False, 0), (False, 1)])
    return lib.distributed_loader_specifics(*flags, data, dict(options))
