"""The command ``brain-ckpt``: looking at checkpoints, comparing, averaging and pruning them."""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING

from brain_ckpt.cli import commands
from brain_ckpt.cli.inspect import WrongUseError
from brain_ckpt.cli.prune import best, budget, count, prune
from brain_ckpt.errors import CheckpointDamagedError, CheckpointError, UnsafeCheckpointError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

WRONG_USE = 2
_INTERRUPTED = 130
_PIPE_CLOSED = 141

_EPILOG = """\
exit codes:
  0  fine
  1  damage was found, or (diff) a difference
  2  wrong use: an option or a path that cannot be used, a directory that a run is writing to,
     an extra that is not installed

Nothing that is read is trusted: files that would run code are refused. Directories that
SpeechBrain wrote are read, too; they have no manifest, so that the checksums in their zip files
are what is checked.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Parameters
    ----------
    arguments : sequence of str, optional
        Those after the command's name; by default of the process.

    Returns
    -------
    int
        The exit code: 0 fine, 1 damage or a difference found, 2 wrong use.
    """
    options = _parser().parse_args(arguments)
    run: Callable[[argparse.Namespace], int] = options.run
    try:
        code = run(options)
        sys.stdout.flush()
    except (CheckpointDamagedError, UnsafeCheckpointError) as error:
        return _fail(error, commands.FOUND)
    except (WrongUseError, CheckpointError, ValueError, ImportError, OSError) as error:
        if isinstance(error, BrokenPipeError):
            # The reader, such as head, has seen enough; the interpreter must not complain at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return _PIPE_CLOSED
        return _fail(error, WRONG_USE)
    except KeyboardInterrupt:
        return _INTERRUPTED
    return code


def _fail(error: Exception, code: int) -> int:
    sys.stderr.write(f"brain-ckpt: {error}\n")
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "brain-ckpt",
        description="Look at checkpoints, compare, average, export and prune them.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parts = parser.add_subparsers(metavar="COMMAND", required=True)

    def part(
        name: str, run: Callable[[argparse.Namespace], int], about: str
    ) -> argparse.ArgumentParser:
        made = parts.add_parser(name, help=about, description=about, allow_abbrev=False)
        made.set_defaults(run=run)
        made.add_argument("--json", action="store_true", help="write one JSON object")
        return made

    ls = part("ls", commands.ls, "list a directory, the newest first")
    ls.add_argument("directory", metavar="DIR")
    ls.add_argument("--quick", action="store_true", help="do not read the files to verify them")

    verify = part("verify", commands.verify, "compare every file with what was written")
    verify.add_argument("path", metavar="DIR_OR_CKPT")

    show = part("show", commands.show, "show names, shapes, dtypes and texts")
    show.add_argument("checkpoint", metavar="CKPT")
    show.add_argument("file", metavar="FILE", nargs="?", help="one of its files; all by default")

    diff = part("diff", commands.diff, "say which states differ, and by how much")
    diff.add_argument("first", metavar="A")
    diff.add_argument("second", metavar="B")

    average = part("average", commands.average, "average parameters, for torch.load")
    average.add_argument("checkpoints", metavar="CKPT", nargs="+")
    average.add_argument("-o", "--output", metavar="FILE", required=True)
    average.add_argument("--recoverable", metavar="NAME", default="model")

    export = part("export", commands.export, "write a state dict as safetensors (an extra)")
    export.add_argument("checkpoint", metavar="CKPT")
    export.add_argument("output", metavar="FILE.safetensors")
    export.add_argument("--recoverable", metavar="NAME", default="model")

    _add_prune(part("prune", prune, "delete what no policy keeps; each policy adds to what stays"))
    return parser


def _add_prune(made: argparse.ArgumentParser) -> None:
    made.add_argument("directory", metavar="DIR")
    made.add_argument("--keep-last", metavar="N", type=count, action="append", help="the newest N")
    made.add_argument(
        "--keep-best", metavar="METRIC:min:K", type=best, action="append", help="the best K; or max"
    )
    made.add_argument("--hourly", action="store_true", help="the first of each hour")
    made.add_argument("--daily", action="store_true", help="the first of each day")
    made.add_argument("--pin", metavar="NAME", action="append", help="one by its name")
    made.add_argument(
        "--budget", metavar="BYTES", type=budget, action="append", help="the newest in, say, 20G"
    )
    made.add_argument(
        "--no-atomic-rename", action="store_true", help="as Checkpointer(atomic_rename=False)"
    )
    made.add_argument("--dry-run", action="store_true", help="only say what would go")
