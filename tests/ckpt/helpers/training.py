"""A training loop that can be killed anywhere and must end with the same result."""

import torch

from brain_ckpt import Checkpointer, RNGState

EPOCHS, BATCHES, SAVE_EACH = 3, 8, 3


class Progress:
    """The position of a run and the samples of the current epoch."""

    def __init__(self):
        self.epoch, self.batch, self.seen, self.validated = 0, 0, [], []

    def state_dict(self):
        return dict(vars(self))

    def load_state_dict(self, state):
        vars(self).update(state)


def train(directory, mark=lambda place: None, **options):
    """Train to the end from the newest checkpoint; return the weights and validation losses."""
    torch.manual_seed(7)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Dropout(0.3), torch.nn.Linear(8, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    progress = Progress()
    checkpointer = Checkpointer(
        directory, {"model": model, "optimizer": optimizer, "progress": progress}, **options
    )
    checkpointer.add_recoverable("rng", RNGState(), per_rank=True)
    rows = torch.randn(BATCHES * 4, 4, generator=torch.Generator().manual_seed(1))
    mark("recovery")
    checkpointer.recover_if_possible()
    mark("recovered")
    while progress.epoch < EPOCHS:
        order = torch.randperm(
            len(rows), generator=torch.Generator().manual_seed(progress.epoch)
        ).split(4)
        model.train()
        while progress.batch < BATCHES:
            chosen = order[progress.batch]
            optimizer.zero_grad()
            model(rows[chosen]).square().mean().backward()
            optimizer.step()
            progress.batch += 1
            progress.seen += chosen.tolist()
            checkpointer.poll()
            mark("step")
            if progress.batch % SAVE_EACH == 0:
                checkpointer.save_and_keep_only(end_of_epoch=False)
                mark("saved")
        mark("epoch_end")
        model.eval()
        with torch.no_grad():
            loss = model(rows).square().mean().item()
        mark("validation")
        assert sorted(progress.seen) == list(range(len(rows))), "a sample was missed or repeated"
        progress.epoch, progress.batch, progress.seen = progress.epoch + 1, 0, []
        progress.validated = [*progress.validated, loss]
        checkpointer.save_and_keep_only(meta={"loss": loss}, min_keys=["loss"])
        mark("epoch_end")
    checkpointer.close()
    return [parameter.detach().clone() for parameter in model.parameters()], progress.validated
