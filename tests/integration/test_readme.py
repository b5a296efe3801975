"""Every command and example of README.md runs, or names what exists."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from brain_core.move.table import as_markdown

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
START = (ROOT / "docs/start.md").read_text(encoding="utf-8")
RECIPE = """
import sys
import torch
import speechbrain as sb
from hyperpyyaml import load_hyperpyyaml
from speechbrain.utils.distributed import run_on_main

class Line(sb.Brain):
    def compute_forward(self, batch, stage):
        batch = batch.to(self.device)
        x, lengths = batch.x
        return self.modules.model(x)

    def compute_objectives(self, predictions, batch, stage):
        return (predictions - batch.y.data).square().mean()

    def on_stage_end(self, stage, stage_loss, epoch):
        if stage == sb.Stage.VALID:
            self.hparams.train_logger.log_stats({"epoch": epoch}, valid_stats={"loss": stage_loss})
            self.checkpointer.save_and_keep_only(meta={"loss": stage_loss}, min_keys=["loss"])

hparams_file, run_opts, overrides = sb.parse_arguments(sys.argv[1:])
sb.utils.distributed.ddp_init_group(run_opts)
with open(hparams_file) as fin:
    hparams = load_hyperpyyaml(fin, overrides)
sb.create_experiment_directory(
    experiment_directory=hparams["output_folder"],
    hyperparams_to_save=hparams_file,
    overrides=overrides,
)
run_on_main(print, kwargs={"end": ""})

@sb.utils.data_pipeline.takes("n")
@sb.utils.data_pipeline.provides("x", "y")
def item(n):
    yield torch.tensor([float(n)])
    yield torch.tensor([2.0 * float(n)])

rows = {str(n): {"n": n / 8} for n in range(8)}
data = sb.dataio.dataset.DynamicItemDataset(rows)
sb.dataio.dataset.add_dynamic_item([data], item)
sb.dataio.dataset.set_output_keys([data], ["id", "x", "y"])
brain = Line(hparams["modules"], hparams["opt_class"], hparams, run_opts, hparams["checkpointer"])
brain.fit(hparams["epoch_counter"], data, data, train_loader_kwargs=hparams["dataloader_options"])
print(brain.evaluate(data, min_key="loss"))
"""
HPARAMS = """
seed: 3
__set_seed: !apply:speechbrain.utils.seed_everything [!ref <seed>]
output_folder: !PLACEHOLDER
dataloader_options:
    batch_size: 4
model: !new:torch.nn.Linear
    in_features: 1
    out_features: 1
modules:
    model: !ref <model>
opt_class: !name:torch.optim.SGD
    lr: 0.1
epoch_counter: !new:speechbrain.utils.epoch_loop.EpochCounter
    limit: 2
train_logger: !new:speechbrain.utils.train_logger.FileTrainLogger
    save_file: !ref <output_folder>/train_log.txt
checkpointer: !new:speechbrain.utils.checkpoints.Checkpointer
    checkpoints_dir: !ref <output_folder>/save
    recoverables:
        model: !ref <model>
        counter: !ref <epoch_counter>
"""


def blocks(language: str) -> list[str]:
    """Return the README's code blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    """Return the lines of the README's shell blocks."""
    return [line for block in blocks("bash") for line in block.splitlines()]


def rows_after(heading: str) -> list[list[str]]:
    """Return the cells of the table in a section."""
    section = README.split(f"## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")][2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def run(*words: str, cwd: Path, **more: str) -> str:
    """Run Python in a folder with one thread; return what it printed."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg", **more}
    done = subprocess.run(
        [sys.executable, *words],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_the_example_is_the_file():
    """A reader copies what the tests run: twenty lines, and empty ones."""
    (shown,) = blocks("python")
    assert shown == (ROOT / "examples/first.py").read_text(encoding="utf-8")
    assert sum(line != "" for line in shown.splitlines()) == 20


def test_each_cell_of_ours_in_the_comparison_is_linked_to_its_proof():
    """It is a test, or a page whose code is run."""
    table = [line.split(" | ") for line in README.split("## ")[0].splitlines() if line[:2] == "| "]
    heading, *rows = table
    assert heading[1] == "Brain"
    assert len(rows) >= 5
    for row in rows:
        assert len(row) == len(heading)
        assert re.fullmatch(r"\[yes\]\((tests/.*\.py|docs/.*\.md)\)", row[1])


def test_the_page_start_prints_and_draws_what_is_shown(tmp_path):
    """It prints five lines like those shown, with a similar accuracy, and draws a picture."""
    assert "\npython examples/digits.py\n" in START
    printed = run(str(ROOT / "examples/digits.py"), cwd=tmp_path).splitlines()
    form = re.compile(r"epoch (\d): loss (\d\.\d{4}), (\d{3}) of 360 digits right")
    found = [form.fullmatch(line).groups() for line in printed]
    expected = [match.groups() for match in form.finditer(START)]
    assert [row[0] for row in found] == [row[0] for row in expected]
    assert abs(int(found[-1][2]) - int(expected[-1][2])) <= 7
    assert (tmp_path / "digits.png").read_bytes().startswith(b"\x89PNG")
    assert (ROOT / "docs" / re.search(r"!\[.*\]\((.*)\)", START)[1]).exists()


def test_the_example_gives_two_processes_the_same_weights(tmp_path):
    """Under torchrun both ranks end with the same losses and weights, BatchNorm's included."""
    assert "\ntorchrun --standalone --nproc-per-node 2 examples/digits.py\n" in START
    program = tmp_path / "both.py"
    program.write_text(
        "import runpy, sys, brain_dist\n"
        "made = runpy.run_path(sys.argv[1])\n"
        "weights = {k: v.tolist() for k, v in made['brain'].raw_modules.state_dict().items()}\n"
        "of_rank = brain_dist.gather_objects((list(made['losses'].values()), weights))\n"
        "assert brain_dist.get_world_size() == 2\n"
        "assert of_rank[0][0] == of_rank[1][0], 'losses'\n"
        "assert of_rank[0][1] == of_rank[1][1], 'weights'\n"
        "assert any(key.endswith('running_mean') for key in weights)\n"
        # A thread of gloo may need the interpreter once more after the last collective.
        "import torch; torch.distributed.destroy_process_group()\n"
    )
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    printed = run(*launcher, str(program), str(ROOT / "examples/digits.py"), cwd=tmp_path)
    assert printed.count("epoch 5: loss") == 1


def test_the_two_commands_name_sessions_and_ci_runs_the_second():
    """Each is one line that makes its own environment, and CI runs the second."""
    one_line = (
        "python3 -m venv .venv && .venv/bin/python -m pip install nox && .venv/bin/python -m nox"
    )
    assert {f"{one_line} -s demo", one_line} <= set(commands())
    ci = (ROOT / ".ci/run").read_text(encoding="utf-8")
    assert one_line in ci.replace(" --quiet", "")


@pytest.mark.parametrize("start", ["pipx run nox", "uvx nox", ".venv/bin/python -m nox"])
def test_the_demo_is_a_session_however_nox_is_started(start):
    """Nox lists the session that the README names."""
    pytest.importorskip("nox")
    (line,) = [line for line in commands() if line.endswith(f"{start} -s demo")]
    arguments = line.split(" nox ")[-1].split()
    listed = run("-m", "nox", "--list", *arguments, cwd=ROOT)
    assert re.search(r"^\* demo ->", listed, flags=re.MULTILINE)


@pytest.mark.parametrize("row", rows_after("Packages"), ids=lambda row: row[0])
def test_installing_one_package_names_every_sibling_that_it_requires(row):
    """The command is complete: it names each sibling that a named package requires."""
    command = row[2].strip("`").split()
    assert command[:2] == ["pip", "install"]
    folders = [ROOT / word for word in command[2:]]
    assert folders[0].name == re.match(r"\[(.*?)\]", row[0])[1]
    texts = [(folder / "pyproject.toml").read_text(encoding="utf-8") for folder in folders]
    required = {
        name for text in texts for name in re.findall(r'^    "(brain-\w+)==', text, re.MULTILINE)
    }
    assert required <= {folder.name for folder in folders}


def test_the_packages_install_as_shown(tmp_path):
    """pip installs the row that names all five, here without downloads."""
    pytest.importorskip("hatchling")
    words = rows_after("Packages")[-1][2].strip("`").split()[2:]
    offline = ["--no-index", "--no-deps", "--no-build-isolation", "--target", str(tmp_path)]
    run("-m", "pip", "install", "-q", *offline, *words, cwd=ROOT)
    names = {path.name for path in tmp_path.iterdir()}
    assert names >= {"brain_ckpt", "brain_core", "brain_data", "brain_dist"}


def test_the_extras_that_are_named_exist():
    """An extra that the README names can be installed."""
    for package, first, others in re.findall(
        r"`(brain-\w+)\[(\w+)\]`((?:[, ]+(?:and )?\s*`\[\w+\]`)*)", README
    ):
        text = (ROOT / "packages" / package / "pyproject.toml").read_text(encoding="utf-8")
        for extra in [first, *re.findall(r"\[(\w+)\]", others)]:
            assert re.search(rf"^{extra} = \[", text, flags=re.MULTILINE), (package, extra)


def test_links_into_the_repository_work():
    """Each names a file or a folder."""
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", README)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_a_speechbrain_recipe_runs_after_brain_move(tmp_path):
    """The command alone is enough for a small recipe and its YAML, which need no SpeechBrain."""
    assert "brain-move path/to/recipe --write  # changes them" in commands()
    (tmp_path / "train.py").write_text(RECIPE)
    (tmp_path / "hparams.yaml").write_text(HPARAMS)
    run("-m", "brain_core.move", ".", "--write", cwd=tmp_path)
    assert "speechbrain" not in (tmp_path / "train.py").read_text()
    assert "speechbrain" not in (tmp_path / "hparams.yaml").read_text()
    printed = run("train.py", "hparams.yaml", "--output_folder=out", "--device=cpu", cwd=tmp_path)
    assert 0 < float(printed.splitlines()[-1]) < 1
    assert len((tmp_path / "out/train_log.txt").read_text().splitlines()) == 2


def test_the_table_is_that_of_brain_move():
    """The README shows what the command has in its help."""
    assert f"\n\n{as_markdown()}\n\n" in README
