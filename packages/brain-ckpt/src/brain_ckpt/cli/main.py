"""The command ``brain-ckpt``: its options and exit codes."""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING

from brain_ckpt.cli import commands, remote
from brain_ckpt.cli.prune import (
    parse_budget,
    parse_keep_best,
    parse_keep_last,
    policies_of,
    prune,
)
from brain_ckpt.errors import (
    CheckpointDamagedError,
    CheckpointError,
    UnsafeCheckpointError,
    UsageError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

USAGE_ERROR = 2
_INTERRUPTED = 130
_PIPE_CLOSED = 141

_EPILOG = """\
exit codes:
  0  fine
  1  damage was found, or (diff) a difference
  2  usage error: an invalid option or path, a directory that a run is writing to, an extra that
     is not installed, an object store that cannot be reached

DIR can be the URL of a mirror, such as s3://bucket/runs/7, and CKPT that of a checkpoint in it,
s3://bucket/runs/7/CKPT+...; credentials come from the environment variables of the store.

No code from a file is run. Directories that SpeechBrain wrote are read, too; they have no
manifest, so their files are compared with the checksums in the zip files themselves.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Parameters
    ----------
    arguments : sequence of str, optional
        The arguments after the name of the command; by default those of the process.

    Returns
    -------
    int
        The exit code: 0 if all is fine, 1 for damage or a difference, 2 for a usage error.
    """
    options = _parser().parse_args(arguments)
    run: Callable[[argparse.Namespace], int] = options.run
    try:
        code = run(options)
        sys.stdout.flush()
    except (CheckpointDamagedError, UnsafeCheckpointError) as error:
        return _fail(error, commands.DAMAGE_OR_DIFFERENCE)
    except (UsageError, CheckpointError, ValueError, ImportError, OSError) as error:
        if isinstance(error, BrokenPipeError):
            # The reader, such as head, closed the pipe; avoid an error of the interpreter at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return _PIPE_CLOSED
        return _fail(error, USAGE_ERROR)
    except KeyboardInterrupt:
        return _INTERRUPTED
    return code


def _fail(error: Exception, code: int) -> int:
    sys.stderr.write(f"brain-ckpt: {error}\n")
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "brain-ckpt",
        description="Inspect, compare, average, export and prune checkpoints.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)

    def subcommand(
        name: str, run: Callable[[argparse.Namespace], int], summary: str
    ) -> argparse.ArgumentParser:
        added = subparsers.add_parser(name, help=summary, description=summary, allow_abbrev=False)
        added.set_defaults(run=run)
        added.add_argument("--json", action="store_true", help="write one JSON object")
        return added

    _add_reading(subcommand)
    _add_changing(subcommand)
    return parser


def _add_reading(subcommand: Callable[..., argparse.ArgumentParser]) -> None:
    list_here_or_there = remote.here_or_there("directory", commands.ls, remote.ls)
    ls = subcommand("ls", list_here_or_there, "list a directory, the newest first")
    ls.add_argument("directory", metavar="DIR")
    ls.add_argument("--quick", action="store_true", help="do not read the files to verify them")

    verify_here_or_there = remote.here_or_there("path", commands.verify, remote.verify)
    verify = subcommand("verify", verify_here_or_there, "compare every file with what was written")
    verify.add_argument("path", metavar="DIR_OR_CKPT")

    show = subcommand(
        "show",
        remote.downloaded("checkpoint", commands.show),
        "show names, shapes, dtypes and text",
    )
    show.add_argument("checkpoint", metavar="CKPT")
    show.add_argument("file", metavar="FILE", nargs="?", help="one of its files; all by default")

    diff_downloaded = remote.downloaded("first", remote.downloaded("second", commands.diff))
    diff = subcommand("diff", diff_downloaded, "show which states differ, and by how much")
    diff.add_argument("first", metavar="A")
    diff.add_argument("second", metavar="B")

    average_downloaded = remote.downloaded("checkpoints", commands.average)
    average = subcommand("average", average_downloaded, "average parameters, for torch.load")
    average.add_argument("checkpoints", metavar="CKPT", nargs="+")
    average.add_argument("-o", "--output", metavar="FILE", required=True)
    average.add_argument("--recoverable", metavar="NAME", default="model")

    export_downloaded = remote.downloaded("checkpoint", commands.export)
    export = subcommand("export", export_downloaded, "write a state dict as safetensors (an extra)")
    export.add_argument("checkpoint", metavar="CKPT")
    export.add_argument("output", metavar="FILE.safetensors")
    export.add_argument("--recoverable", metavar="NAME", default="model")


def _add_changing(subcommand: Callable[..., argparse.ArgumentParser]) -> None:
    prune_here_or_there = remote.here_or_there(
        "directory", prune, lambda options: remote.prune(options, policies_of(options))
    )
    _add_prune_options(
        subcommand(
            "prune",
            prune_here_or_there,
            "delete the checkpoints that no policy keeps; policies add up",
        )
    )

    push = subcommand("push", remote.push, "copy checkpoints to an object store (an extra)")
    push.add_argument("path", metavar="DIR_OR_CKPT")
    push.add_argument("url", metavar="URL")

    pull = subcommand("pull", remote.pull, "copy the newest, or URL/CKPT+..., into a directory")
    pull.add_argument("url", metavar="URL")
    pull.add_argument("directory", metavar="DIR")
    pull.add_argument("--all", action="store_true", help="copy all checkpoints")


def _add_prune_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("directory", metavar="DIR")
    parser.add_argument(
        "--keep-last", metavar="N", type=parse_keep_last, action="append", help="the newest N"
    )
    parser.add_argument(
        "--keep-best",
        metavar="METRIC:min:K",
        type=parse_keep_best,
        action="append",
        help="the best K; or max",
    )
    parser.add_argument("--hourly", action="store_true", help="the first of each hour")
    parser.add_argument("--daily", action="store_true", help="the first of each day")
    parser.add_argument("--pin", metavar="NAME", action="append", help="a checkpoint by name")
    parser.add_argument(
        "--budget",
        metavar="BYTES",
        type=parse_budget,
        action="append",
        help="the newest within, say, 20G",
    )
    parser.add_argument(
        "--no-atomic-rename", action="store_true", help="as Checkpointer(atomic_rename=False)"
    )
    parser.add_argument("--dry-run", action="store_true", help="only show what would be deleted")
