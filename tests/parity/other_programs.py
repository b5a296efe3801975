"""Programs for brain-dist, brain-ckpt and brain-core; see `parity`."""

from __future__ import annotations

import logging
import os
import random
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
import yaml
from hyperpyyaml import load_hyperpyyaml

PROGRAMS = {}


def program(function):
    """Add a program."""
    PROGRAMS[function.__name__] = function
    return function


def collect(*args, **kwargs):
    """Return its arguments."""
    return args, dict(sorted(kwargs.items()))


@program
def run_on_main(draw, lib):
    """All arguments, by position and by name, in every form."""
    args = draw.choice([None, [], [1, "a"], (2,), "ab", np.arange(2), {"k": 1}, torch.ones(2)])
    kwargs = draw.choice([None, {}, {"x": 1}, {"y": torch.ones(1), "x": None}])
    after = []
    options = {}
    if draw.random() < 0.5:
        options = {
            "post_func": lambda *a, **k: after.append((a, k)),
            "post_args": draw.choice([None, [3], (4,)]),
        }
        options["post_kwargs"] = draw.choice([None, {"z": 1}])
    run = draw.choice([lib.run_on_main, lib.run_once_per_node])
    if draw.random() < 0.3:
        both = {"run_post_on_main": True} if run is lib.run_on_main else {"run_post_on_all": True}
        options |= both
    if draw.random() < 0.5:
        return run(collect, args, kwargs, **options), after
    return run(collect, args=args, kwargs=kwargs, **options), after


@program
def decorators_of_ranks(draw, lib):
    """A decorated function keeps its name, arguments and result."""
    decorate = draw.choice([lib.main_process_only, lib.once_per_node])
    function = decorate(collect)
    return function(1, a=draw.random()), function.__name__, function.__doc__


@program
def ranks_of_the_environment(draw, lib):
    """The variables of launchers, and none."""
    names = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK")
    before = {name: os.environ.pop(name, None) for name in names}
    try:
        for name in names:
            if draw.random() < 0.4:
                os.environ[name] = str(draw.randint(0, 3))
        if not any(name in os.environ for name in names):
            return lib.if_main_process(), lib.is_local_rank_zero(), lib.is_distributed_initialized()
        if "LOCAL_RANK" in os.environ and "RANK" not in os.environ:
            os.environ["RANK"] = os.environ["LOCAL_RANK"]
        os.environ.setdefault("LOCAL_RANK", "0")
        main = lib.if_main_process() if lib.get_rank() == 0 else None  # ours needs no group for it
        return lib.get_local_rank(), lib.get_rank(), main, lib.infer_device()
    finally:
        for name in names:
            os.environ.pop(name, None)
            if before[name] is not None:
                os.environ[name] = before[name]


@program
def collectives(draw, lib):
    """In one process, what they are given."""
    value = draw.choice([None, 1, "a", [1], torch.tensor(2.0), {"a": np.ones(2)}])
    reduce = torch.distributed.ReduceOp.SUM
    objects = [
        lib.ddp_broadcast(value),
        lib.ddp_broadcast(value, 0),
        lib.ddp_broadcast(value, src=0),
    ]
    return *objects, lib.ddp_all_reduce(value, reduce), lib.ddp_barrier()


@program
def ddp_init_group(draw, lib):
    """Run options of one process."""
    before = {name: os.environ.pop(name, None) for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE")}
    try:
        options = draw.choice([{}, {"device": "cpu"}, {"distributed_backend": "gloo"}])
        return lib.ddp_init_group(options), lib.is_distributed_initialized()
    finally:
        os.environ.update({k: v for k, v in before.items() if v is not None})


@program
def AMPConfig(draw, lib):  # noqa: N802
    """Names of precisions."""
    name = draw.choice([None, "fp32", "fp16", "bf16"])
    return lib.AMPConfig.from_name(name).dtype, lib.AMPConfig(torch.float16).dtype


@program
def autocast(draw, lib):
    """Positional and named arguments, nested, with and without autocast."""
    dtype = draw.choice([torch.float32, torch.bfloat16])
    options = draw.choice([{"dtype": dtype}, {"dtype": dtype, "enabled": draw.random() < 0.5}, {}])
    context = (
        lib.TorchAutocast(draw.choice(["cpu"]), **options)
        if draw.random() < 0.7
        else (lib.TorchAutocast(device_type="cpu", **options))
    )
    layer = torch.nn.Linear(2, 2)
    forms = draw.choice(["plain", "called", "cast"])
    forward = {
        "plain": lib.fwd_default_precision(layer),
        "called": lib.fwd_default_precision()(layer),
        "cast": lib.fwd_default_precision(cast_inputs=draw.choice([torch.float32, None]))(layer),
    }[forms]
    x = torch.ones(1, 2)
    with torch.no_grad(), context:
        first, second = layer(x), forward(layer(x))
        third = forward(layer(x), force_allow_autocast=True)
    with context:
        fourth = layer(x).detach()
    return first, second, third, fourth, forward(x).detach()


@program
def average_state_dicts(draw, lib):
    """Lists, tuples, generators; floats of several types."""
    shapes = {"w": (2, 2), "b": (1,), "s": ()}
    dtype = draw.choice([torch.float32, torch.float64])  # ours adds in higher precision
    dicts = [
        {k: draw.tensor(*shape).to(dtype) for k, shape in shapes.items()}
        for _ in range(draw.randint(1, 4))
    ]
    if draw.random() < 0.3:
        dicts = [{k: torch.nn.Parameter(v) for k, v in each.items()} for each in dicts]
    given = draw.choice([list, tuple, iter, lambda d: (x for x in d)])(dicts)
    averaged = lib.average_state_dicts(given)
    return {k: torch.as_tensor(v).detach().double().mul(1e3).round() for k, v in averaged.items()}


def saved(draw, lib, folder):
    """Return a checkpointer with some checkpoints; metrics in several forms."""
    model = torch.nn.Linear(1, 1)
    checkpointer = lib.Checkpointer(
        folder, {"model": model}, allow_partial_load=draw.random() < 0.5
    )
    for i in range(draw.randint(1, 4)):
        with torch.no_grad():
            model.weight.fill_(i)
        meta = {"unixtime": 1000.0 + i, "i": i}
        if draw.random() < 0.8:
            meta["loss"] = draw.choice([draw.random(), draw.randint(0, 3)])
        if draw.random() < 0.5:
            meta["acc"] = draw.random()
        checkpointer.save_checkpoint(
            meta=meta, end_of_epoch=draw.random() < 0.7, name=draw.choice([None, f"name{i}"])
        )
    return checkpointer, model


def chosen(checkpoint):
    """Return what tells checkpoints apart."""
    return None if checkpoint is None else (checkpoint.meta["i"], checkpoint.meta["end-of-epoch"])


@program
def finding_checkpoints(draw, lib):
    """Every argument of ``find_checkpoint`` and its companions."""
    with tempfile.TemporaryDirectory() as folder:
        checkpointer, model = saved(draw, lib, draw.choice([str(folder), Path(folder)]))
        options = draw.choice([{}, {"min_key": "loss"}, {"max_key": "acc"}, {"max_key": "loss"}])
        # A metric that no checkpoint has is an error here.
        metrics = {name for each in checkpointer.list_checkpoints() for name in each.meta}
        options = {name: metric for name, metric in options.items() if metric in metrics}
        if draw.random() < 0.3:
            options = {"importance_key": lambda c: -c.meta["i"]}
        if draw.random() < 0.3:
            options["ckpt_predicate"] = lambda c: c.meta["i"] > 0
        found = checkpointer.find_checkpoint(**options)
        many = {"max_num_checkpoints": draw.choice([None, 1, 2, 9, np.int64(2)])} | options
        results = [chosen(found), sorted(map(chosen, checkpointer.list_checkpoints()))]
        results.append([chosen(each) for each in checkpointer.find_checkpoints(**many)])
        with torch.no_grad():
            model.weight.fill_(-1)
        results.append(chosen(checkpointer.recover_if_possible(**options)))
        results.append(model.weight.item())
        if found is not None:
            results += [found.paramfiles.keys() == {"model"}, lib.ckpt_recency(found)]
            average = lib.average_checkpoints(draw.listed([found, found]), "model")
            results.append(average["weight"].item())
            average = lib.average_checkpoints(
                [found], recoverable_name="model", parameter_loader=torch.load
            )
            results.append(average["weight"].item())
        return results


@program
def keeping_checkpoints(draw, lib):
    """``save_and_keep_only`` and ``delete_checkpoints`` with lists, tuples and numbers."""
    with tempfile.TemporaryDirectory() as folder:
        checkpointer, _ = saved(draw, lib, folder)
        # SpeechBrain appends to this list, and to its default: it stays from call to call.
        options = {"num_to_keep": draw.choice([1, 2, 3]), "importance_keys": []}
        if draw.random() < 0.5:
            options["min_keys"] = draw.listed(["loss"])
        if draw.random() < 0.5:
            options["max_keys"] = draw.listed(["acc"])
        if draw.random() < 0.3:
            options["keep_recent"] = draw.random() < 0.5
        if draw.random() < 0.3:
            options["ckpt_predicate"] = lambda c: c.meta["i"] != 1
        if draw.random() < 0.3:
            options["importance_keys"] = [lambda c: -c.meta["i"]]
        form = draw.choice([float, float, torch.tensor, np.float64, np.float32])
        meta = {"i": 9, "loss": form(draw.random()), "acc": form(draw.random()), "unixtime": 2000.0}
        if draw.random() < 0.6:
            checkpointer.save_and_keep_only(meta=meta, **options)
        else:
            options.pop("keep_recent", None)
            checkpointer.delete_checkpoints(**options)
        kept = sorted(checkpointer.list_checkpoints(), key=lambda c: c.meta["i"])
        return [(chosen(c), float(c.meta.get("loss", -1))) for c in kept]


@program
def torch_hooks(draw, lib):
    """Saving and loading a module, an optimizer and a scheduler by hand."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "x.ckpt")
        path = draw.choice([path, Path(path)])
        module = torch.nn.Linear(2, 2)
        other = torch.nn.Linear(2, 2)
        if draw.random() < 0.5:
            lib.torch_save(module, path)
            load = draw.choice(
                [
                    lambda: lib.torch_recovery(other, path, end_of_epoch=True),
                    lambda: lib.torch_recovery(other, path, end_of_epoch=False),
                    lambda: lib.torch_parameter_transfer(other, path),
                ]
            )
            load()
            return other.weight.detach(), torch.load(path)
        optimizer = torch.optim.Adam(module.parameters(), lr=draw.random())
        lib.torch_save(optimizer, path)
        new = torch.optim.Adam(other.parameters(), lr=9)
        lib.torch_recovery(new, path, draw.random() < 0.5)
        return new.param_groups[0]["lr"]


@program
def marked_hooks(draw, lib):
    """A class with marked methods, saved and recovered."""

    class Custom:
        def __init__(self, value):
            self.value = value

        @lib.mark_as_saver
        def save(self, path):
            with open(path, "w", encoding="utf-8") as file:
                file.write(str(self.value))

        @lib.mark_as_loader
        def load(self, path, end_of_epoch):
            with open(path, encoding="utf-8") as file:
                self.value = file.read() + str(end_of_epoch)

        @lib.mark_as_transfer
        def transfer(self, path):
            self.value = "transferred"

    register = lib.register_checkpoint_hooks
    custom = register(Custom) if draw.random() < 0.5 else register(Custom, save_on_main_only=False)
    with tempfile.TemporaryDirectory() as folder:
        checkpointer = lib.Checkpointer(folder, {"c": custom(draw.randint(0, 9))})
        checkpointer.save_checkpoint(end_of_epoch=draw.random() < 0.5)
        new = custom(None)
        again = lib.Checkpointer(folder)
        again.add_recoverable("c", new)
        again.recover_if_possible()
        pretrainer = lib.Pretrainer(folder, loadables={"c": custom(1)})
        return new.value, sorted(pretrainer.loadables)


@program
def EpochCounter(draw, lib):  # noqa: N802
    """Limits in every form that a number has."""
    limit = draw.choice(
        [
            draw.randint(0, 4),
            2.0,
            "3",
            np.int64(2),
            torch.tensor(2),
            torch.tensor([3]),
            np.asarray([2]),
            np.float32(1),
        ]
    )
    counter = lib.EpochCounter(limit) if draw.random() < 0.5 else lib.EpochCounter(limit=limit)
    found = [(epoch, counter.current) for epoch in counter]
    counter.limit += 1
    return found, list(counter), counter.limit


@program
def EpochCounterWithStopper(draw, lib):  # noqa: N802
    """Metrics in every form that a number has."""
    # The metrics differ: with "max" SpeechBrain takes an equal one for better.
    counter = lib.EpochCounterWithStopper(
        draw.choice([5, 9, "4"]),
        draw.randint(0, 3),
        draw.randint(0, 3),
        draw.choice(["min", "max"]),
    )
    found = []
    for epoch in counter:
        counter.update_metric(draw.number(draw.choice([draw.random(), draw.randint(0, 10**6)])))
        found.append(
            (epoch, bool(counter.should_stop), counter.best_limit, float(counter.best_score))
        )
    return found


@program
def EpochCounter_saved(draw, lib):  # noqa: N802
    """Saved and recovered, at the end of an epoch or within."""
    with tempfile.TemporaryDirectory() as folder:
        make = lambda: draw.choice([lib.EpochCounter])(5)  # noqa: E731
        if draw.random() < 0.5:
            make = lambda: lib.EpochCounterWithStopper(5, 3, 0, "min")  # noqa: E731
        counter = make()
        for epoch in counter:
            if hasattr(counter, "update_metric"):
                counter.update_metric(draw.number(draw.random()))
            if epoch == 2:
                break
        lib.Checkpointer(folder, {"c": counter}).save_checkpoint(end_of_epoch=draw.random() < 0.5)
        new = make()
        lib.Checkpointer(folder, {"c": new}).recover_if_possible()
        return list(new), new.limit


def stats(draw):
    """Draw statistics of a set."""
    return {
        name: draw.choice(
            [
                draw.number(draw.uniform(-200, 200)),
                draw.number(draw.randint(-5, 500)),
                "text",
                None,
                True,
                [1.5, 2],
                {"a": 1.0},
                float("nan"),
                float("inf"),
                1.0,
                100.0,
                0.0,
            ]
        )
        for name in draw.sample(["loss", "acc", "wer", "lr"], draw.randint(1, 3))
    }


@program
def FileTrainLogger(draw, lib):  # noqa: N802
    """Every type of a statistic, as recipes log them."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "log.txt")
        options = {"precision": draw.choice([0, 1, 3, np.int64(2)])} if draw.random() < 0.4 else {}
        logger = lib.FileTrainLogger(draw.choice([path, Path(path)]), **options)
        for epoch in range(draw.randint(1, 3)):
            sets = {
                f"{name}_stats": stats(draw) for name in draw.sample(["train", "valid", "test"], 2)
            }
            meta = {"epoch": epoch, **stats(draw)}
            if draw.random() < 0.5:
                logger.log_stats(meta, verbose=draw.random() < 0.5, **sets)
            else:
                logger.log_stats(stats_meta=meta, train_stats=stats(draw))
        with open(path, encoding="utf-8") as file:
            return file.read()


@program
def seed_everything(draw, lib):
    """Seeds as numbers of any kind and as text."""
    kept = random.getstate(), np.random.get_state(), torch.get_rng_state()
    seed = draw.choice(
        [
            0,
            1,
            4294967295,
            "17",
            np.int64(5),
            3.0,
            np.float32(4),
            torch.tensor(6),
            torch.tensor([7]),
            True,
            np.asarray(8),
        ]
    )
    options = draw.choice([{}, {"verbose": False}, {"deterministic": False}])
    os.environ.pop("SB_GLOBAL_SEED", None)
    try:
        returned = lib.seed_everything(seed, **options)
        return (
            returned,
            random.random(),
            float(np.random.rand()),
            torch.rand(1),
            os.environ.get("SB_GLOBAL_SEED"),
            os.environ.get("PL_GLOBAL_SEED"),
        )
    finally:
        random.setstate(kept[0])
        np.random.set_state(kept[1])
        torch.set_rng_state(kept[2])
        os.environ.pop("SB_GLOBAL_SEED", None)
        os.environ.pop("PL_GLOBAL_SEED", None)


ARGUMENTS = [
    ["--device", "cpu"],
    ["--device=cpu"],
    ["--precision", "bf16"],
    ["--debug"],
    ["--debug_batches", "3"],
    ["--seed", "5"],
    ["--lr", "0.1"],
    ["--lr=1e-4"],
    ["--flag", "True"],
    ["--none=null"],
    ["--none", "None"],
    ["--list=[1, 2]"],
    ["--list=[64,", "100,", "128]"],
    ["--list", "[1,2]"],
    ["--list", "[64,", "100,", "128]"],
    ["--mapping={a: 1}"],
    ["--text=a b"],
    ["--text", "it's"],
    ["--max_grad_norm", "1.5"],
    ["--noprogressbar"],
    ["--skip_prep", "yes"],
    ["--neg=-5"],
    ["--path=/a/b"],
    ["--grad_accumulation_factor", "4"],
    ["--ckpt_interval_minutes=3"],
    ["--jit_module_keys", "model"],
    ["--name", "!ref <x>"],
    ["--num_workers", "0"],
    ["--optimizer_step_limit", "7"],
    ["--quoted='x'"],
    ["--hash=a#b"],
    ["--colon=a: b"],
    ["--data_folder=/x y/z"],
    ["--precision=fp16"],
    ["--eval_precision=bf16"],
    ["--test_only"],
    ["--tqdm_colored_bar"],
    ["--jit"],
    ["--compile"],
    ["--find_unused_parameters"],
    ["--nonfinite_patience", "2"],
    ["--avg_checkpoints=5"],
]


@program
def parse_arguments(draw, lib):
    """A file, run options and overrides, as recipes' READMEs have them."""
    words = [word for part in draw.sample(ARGUMENTS, draw.randint(0, 5)) for word in part]
    words.insert(0, draw.choice(["x.yaml", "hparams/train.yaml"]))
    file, options, overrides = lib.parse_arguments(words)

    known = "".join(f"{word.partition('=')[0][2:]}: 0\n" for word in words if word[:2] == "--")
    loaded = load_hyperpyyaml(f"x: 3\nquoted: !ref <x>\n{known}", overrides)
    keys = sorted(
        key
        for key in (
            "device",
            "precision",
            "debug",
            "max_grad_norm",
            "noprogressbar",
            "debug_batches",
            "grad_accumulation_factor",
            "test_only",
            "jit_module_keys",
            "optimizer_step_limit",
        )
        if key in dict(options.items()) and options.get(key) is not None
    )
    return file, dict(sorted(loaded.items())), {key: str(options[key]) for key in keys}


@program
def RunOptions(draw, lib):  # noqa: N802
    """Made by name or from a mapping, read as a mapping."""
    given = dict(
        draw.sample(
            [
                ("device", "cpu"),
                ("debug", True),
                ("precision", "bf16"),
                ("max_grad_norm", 2),
                ("debug_batches", 4),
                ("grad_accumulation_factor", 2),
                ("noprogressbar", False),
                ("ckpt_interval_minutes", 1),
            ],
            3,
        )
    )
    options = (
        lib.RunOptions(**given) if draw.random() < 0.5 else lib.RunOptions.from_dictionary(given)
    )
    return (
        {key: options[key] for key in given},
        options.get("nothing", 5),
        options.get("nothing"),
        "device" in options,
        "nothing" in options,
        {key: getattr(options, key) for key in given},
        set(given) <= set(options.keys()),
        {k: v for k, v in options.items() if k in given},
        {k: options.as_dict()[k] for k in given},
    )


@program
def Stage(draw, lib):  # noqa: N802
    """Members by name and number."""
    return (
        [(each.name, each.value) for each in lib.Stage],
        lib.Stage["TRAIN"] == lib.Stage.TRAIN,
        lib.Stage(2).name,
    )


@program
def create_experiment_directory(draw, lib):
    """Folders and overrides in several forms."""
    handlers = logging.root.handlers[:], logging.root.level

    hook = sys.excepthook
    with tempfile.TemporaryDirectory() as folder:
        hparams = os.path.join(folder, "h.yaml")
        with open(hparams, "w", encoding="utf-8") as file:
            file.write("a: 1\nb: !ref <a>\nc: [1, 2]\n")
        out = os.path.join(folder, "out", "deep")
        form = draw.choice([str, Path])
        overrides = draw.choice([{}, {"a": 5}, "a: 5", "", "{a: 5}", {"c": [3]}])
        try:
            lib.create_experiment_directory(
                experiment_directory=form(out),
                hyperparams_to_save=draw.choice([hparams, None]),
                overrides=overrides,
                save_env_desc=draw.random() < 0.2,
            )
        finally:
            for handler in logging.root.handlers[:]:
                if handler not in handlers[0]:
                    logging.root.removeHandler(handler)
                    handler.close()
            logging.root.setLevel(handlers[1])
            sys.excepthook = hook
        path = os.path.join(out, "hyperparams.yaml")
        values = None
        if os.path.exists(path):
            with open(path, encoding="utf-8") as file:
                values = yaml.safe_load(file)
        return values, sorted(set(os.listdir(out)) & {"hyperparams.yaml", "env.log", "log.txt"})
