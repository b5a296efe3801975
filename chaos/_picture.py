"""A picture of a session: how far each killed run was, and how much it repeated."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from chaos._figure import new_figure
from chaos._status import Phase

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from chaos._run import Kill

__all__ = ["draw"]

_BINS = 40
_STYLES = {
    Phase.START: ("start-up", "#9e9e9e"),
    Phase.STEP: ("training", "#4c78a8"),
    Phase.SAVE: ("saving", "#e45756"),
    Phase.WRITE: ("saving in the background", "#f2a09f"),
    Phase.VALID: ("validation", "#54a24b"),
    Phase.BETWEEN: ("between them", "#b279a2"),
    Phase.END: ("after the last epoch", "#eeca3b"),
}


def draw(kills: Sequence[Kill], path: Path) -> None:
    """Draw the kills over the progress of a run by phase, and what each made the run repeat.

    Parameters
    ----------
    kills : sequence of Kill
        The kills of a session.
    path : Path
        The file of the picture.

    Raises
    ------
    ImportError
        Without matplotlib, which ``brain-core[plot]`` installs.
    """
    by_phase = {phase: [kill for kill in kills if kill.phase == phase.name] for phase in _STYLES}
    figure, (upper, lower) = new_figure((9, 6.5), 2, height_ratios=(3, 2))
    upper.hist(
        [[100 * kill.progress for kill in killed] for killed in by_phase.values()],
        bins=_BINS,
        range=(0, 100),
        stacked=True,
        color=[colour for _, colour in _STYLES.values()],
        label=[f"{_STYLES[phase][0]}: {len(killed)}" for phase, killed in by_phase.items()],
    )
    upper.set_ylabel("kills")
    upper.set_title(f"{len(kills):,} kills over the progress of a run")
    upper.legend(ncols=2, fontsize="small", frameon=False)
    shift = itertools.cycle(
        (-0.24, -0.12, 0.0, 0.12, 0.24)
    )  # so that equal points do not hide each other
    for phase, killed in by_phase.items():
        lower.scatter(
            [100 * kill.progress for kill in killed],
            [kill.redone + next(shift) for kill in killed],
            s=9,
            alpha=0.6,
            linewidths=0,
            color=_STYLES[phase][1],
        )
    lower.set_ylabel("batches repeated")
    lower.set_xlabel("progress of the run when it was killed, %")
    for axes in (upper, lower):
        axes.yaxis.get_major_locator().set_params(integer=True)
    figure.savefig(path, dpi=150)
