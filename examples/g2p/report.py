"""The results of the recipe: an error count, a picture and a table."""

from __future__ import annotations

import random
from pathlib import Path

from matplotlib.figure import Figure  # not pyplot: it needs no display


def edit_distance(predicted: list[str], reference: list[str]) -> int:
    """Return the number of insertions, deletions and substitutions between two lists.

    Examples
    --------
    >>> edit_distance("K AE T".split(), "K AA T S".split())
    2
    """
    row = list(range(len(reference) + 1))
    for i, one in enumerate(predicted, 1):
        diagonal, row[0] = row[0], i
        for j, other in enumerate(reference, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (one != other))
    return row[-1]


def draw_curves(curves, test_error_rate, path):
    """Draw the loss of each step, and the error rate of each epoch."""
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(range(1, len(curves.losses) + 1), curves.losses, linewidth=0.6)
    left.set(title="Training: CTC loss", xlabel="step", yscale="log")
    steps, rates = zip(*curves.error_rates, strict=True)
    right.plot(steps, rates, marker="o", label="validation")
    right.axhline(test_error_rate, linestyle="--", color="tab:red", label="test, best checkpoint")
    for step, rate in curves.error_rates:
        right.annotate(f"{rate:.1f}", (step, rate), textcoords="offset points", xytext=(4, 6))
    right.set(
        title="Phoneme error rate, %",
        xlabel="step",
        xlim=(0, 1.1 * steps[-1]),
        ylim=(0, 1.2 * max(rates)),
    )
    right.legend()
    figure.savefig(path, dpi=110)


def write_table(scored, path, words: int = 20) -> str:
    """Write the model's and the dictionary's pronunciation of every word; return some rows."""

    def line(row):
        word, predicted, reference, errors = row
        return f"{word:<16} {' '.join(predicted):<32} {' '.join(reference):<32} {errors or '':>6}"

    head = f"{'word':<16} {'model':<32} {'dictionary':<32} errors"
    Path(path).write_text("\n".join([head, *map(line, scored)]) + "\n", encoding="utf-8")
    sample = random.Random(1).sample(scored, min(words, len(scored)))
    return "\n".join([head, *map(line, sample)])
