"""Brain.fit beside the loop that it stands for: the same weights, bit for bit."""

from __future__ import annotations

import contextlib

import pytest
import torch

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01),
}


def model():
    """Make a model with dropout and a norm, always with the same weights."""
    torch.manual_seed(1)
    return torch.nn.Sequential(
        torch.nn.Linear(4, 8), torch.nn.LayerNorm(8), torch.nn.Dropout(0.3), torch.nn.Linear(8, 2)
    )


def train_by_hand(net, data, optimizer, *, epochs, batch, accumulate, max_norm, autocast, workers):
    """Train as one would without a Brain."""
    for epoch in range(epochs):
        order = torch.randperm(
            len(data), generator=torch.Generator().manual_seed(563375142 + epoch)
        ).tolist()
        chunks = [order[i : i + batch] for i in range(0, len(order), batch)]
        loader = torch.utils.data.DataLoader(data, batch_sampler=chunks, num_workers=workers)
        net.train()
        for number, (inputs, targets) in enumerate(loader, 1):
            context = (
                torch.autocast("cpu", torch.bfloat16) if autocast else contextlib.nullcontext()
            )
            with context:
                loss = torch.nn.functional.mse_loss(net(inputs), targets)
            (loss / accumulate).backward()
            last = number == len(chunks)
            if number % accumulate == 0 or last:
                in_window = number % accumulate or accumulate
                if in_window < accumulate:
                    for p in net.parameters():
                        p.grad.mul_(accumulate / in_window)
                torch.nn.utils.clip_grad_norm_(net.parameters(), max_norm)
                optimizer.step()
                optimizer.zero_grad()


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(
    ("accumulate", "autocast", "workers"),
    [(1, False, 0), (4, False, 0), (1, True, 0), (4, True, 2), (1, False, 2)],
)
def test_brain_trains_to_the_same_bits(regression, pairs, optimizer, accumulate, autocast, workers):
    """With accumulation that does not divide the epoch, clipping, bf16, dropout and workers."""
    by_hand, by_brain = model(), model()
    torch.manual_seed(2)
    train_by_hand(
        by_hand,
        pairs,
        OPTIMIZERS[optimizer](by_hand.parameters()),
        epochs=3,
        batch=4,
        accumulate=accumulate,
        max_norm=0.5,
        autocast=autocast,
        workers=workers,
    )
    torch.manual_seed(2)
    brain = regression(
        {"model": by_brain},
        OPTIMIZERS[optimizer],
        run_opts={
            "device": "cpu",
            "grad_accumulation_factor": accumulate,
            "max_grad_norm": 0.5,
            "precision": "bf16" if autocast else "fp32",
        },
    )
    kwargs = {"batch_size": 4, "shuffle": True, "num_workers": workers}
    brain.fit(range(3), pairs, train_loader_kwargs=kwargs)
    for (name, a), b in zip(by_brain.named_parameters(), by_hand.parameters(), strict=True):
        assert torch.equal(a, b), name
