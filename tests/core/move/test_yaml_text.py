"""Moving the tags of HyperPyYAML files."""

from __future__ import annotations

import pytest

from brain_core.move.edits import MoveError
from brain_core.move.yaml_text import move_yaml

BEFORE = """\
# counter: !new:speechbrain.utils.epoch_loop.EpochCounter
seed: 3
__set_seed: !apply:speechbrain.utils.seed_everything [!ref <seed>]
name: speechbrain.core.Brain
"quoted": "!new:speechbrain.core.Brain"
text: |
    x: !new:speechbrain.core.Brain
counter: !new:speechbrain.utils.epoch_loop.EpochCounter  # of epochs
    limit: !ref <number_of_epochs>
loss: !name:speechbrain.nnet.losses.nll_loss
pad: !name:speechbrain.dataio.batch.PaddedBatch
amp: !apply:speechbrain.core.AMPConfig.from_name {name: größe}
lr: !new:speechbrain.nnet.schedulers.NoamScheduler {a: !new:speechbrain.Brain []}
model: !new:torch.nn.Linear {in_features: 1}
other: !include:speechbrain/core.yaml
path: !ref <output_folder>/save
"""
AFTER = """\
# counter: !new:speechbrain.utils.epoch_loop.EpochCounter
seed: 3
__set_seed: !apply:brain_core.seed_everything [!ref <seed>]
name: speechbrain.core.Brain
"quoted": "!new:speechbrain.core.Brain"
text: |
    x: !new:speechbrain.core.Brain
counter: !new:brain_core.EpochCounter  # of epochs
    limit: !ref <number_of_epochs>
loss: !name:speechbrain.nnet.losses.nll_loss
pad: !name:brain_data.PaddedBatch
amp: !apply:brain_dist.AMPConfig.from_name {name: größe}
lr: !new:speechbrain.nnet.schedulers.NoamScheduler {a: !new:brain_core.Brain []}
model: !new:torch.nn.Linear {in_features: 1}
other: !include:speechbrain/core.yaml
path: !ref <output_folder>/save
"""


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_tags_are_moved_and_all_else_stays(newline):
    """Comments, strings, block texts, references and other tags; and moving again is no change."""
    after = AFTER.replace("\n", newline)
    assert move_yaml(BEFORE.replace("\n", newline)).text == after
    assert move_yaml(after).text == after


def test_tags_that_stay_are_told_with_their_lines():
    """Each name as it is written."""
    assert [(each.line, each.name) for each in move_yaml(BEFORE).left] == [
        (10, "speechbrain.nnet.losses.nll_loss"),
        (13, "speechbrain.nnet.schedulers.NoamScheduler"),
    ]


def test_a_text_that_is_not_yaml_is_an_error():
    """The scanner says where."""
    with pytest.raises(MoveError, match="not YAML"):
        move_yaml("a: [!new:speechbrain.core.Brain\n'b")
