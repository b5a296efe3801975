"""A simulated file system that computes the states that a power loss can leave.

The failpoint records the operations of a real run.  States are made from the first k of them: of
each directory any subset of the changes since its last fsync is applied, and of each file the data
written since its last fsync is kept, dropped, zeroed or truncated.  A rename is one change, as on
every local file system.
"""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class File:
    durable: bytes = b""
    content: bytes = b""


@dataclass
class Directory:
    durable: dict = field(default_factory=dict)
    entries: dict = field(default_factory=dict)
    pending: list = field(default_factory=list)

    def change(self, *change):
        self.pending.append(change)
        apply(self.entries, change)


def apply(entries, change):
    """Apply one change to the entries of a directory."""
    kind, name, *rest = change
    if kind == "add":
        entries[name] = rest[0]
    elif kind == "remove":
        entries.pop(name, None)
    else:  # rename
        entries.pop(name, None)
        entries[rest[0]] = rest[1]


class Recorder:
    """A failpoint that records all operations; `acknowledge` records a returned save."""

    def __init__(self, root):
        self.root = Path(root)
        self.operations = []

    def __call__(self, operation, path, detail):
        if operation in ("list", "open"):
            return
        name = str(Path(path).relative_to(self.root))
        if operation == "write":
            detail = bytes(detail)
        elif operation == "external_write":
            detail = Path(path).read_bytes()
        elif operation == "rename":
            detail = str(Path(detail).relative_to(self.root))
        self.operations.append((operation, name, detail))
        return

    def acknowledge(self, number):
        self.operations.append(("acknowledge", "", number))


class Disk:
    """The files as the kernel has them, and as flushed to the disk.

    With ``renames=False`` a directory is renamed file by file.
    """

    def __init__(self, start, *, renames=True):
        self.root = read_tree(start)
        self.acknowledged = 0
        self.renames = renames

    def run(self, operations):
        for operation, name, detail in operations:
            getattr(self, operation)(name, detail)
        return self

    def mkdir(self, name, _):
        parent, leaf = self._parent(name)
        parent.change("add", leaf, Directory())

    def create(self, name, _):
        parent, leaf = self._parent(name)
        parent.change("add", leaf, File())

    def write(self, name, data):
        self._find(name).content += data

    def external_write(self, name, content):
        parent, leaf = self._parent(name)
        parent.change("add", leaf, File(content=content))

    def fsync(self, name, _):
        file = self._find(name)
        file.durable = file.content

    def fsync_directory(self, name, _):
        directory = self._find(name)
        directory.durable = dict(directory.entries)
        directory.pending = []

    def rename(self, name, target):
        parent, leaf = self._parent(name)
        target = target.rpartition("/")[2]  # in the same directory
        moved = parent.entries[leaf]
        if self.renames or isinstance(moved, File):
            parent.change("rename", leaf, target, moved)
            return
        made = Directory()
        parent.change("add", target, made)
        for child, node in list(moved.entries.items()):
            made.change("add", child, node)
            moved.change("remove", child)
        parent.change("remove", leaf)

    def unlink(self, name, _):
        parent, leaf = self._parent(name)
        parent.change("remove", leaf)

    rmdir = unlink

    def acknowledge(self, _, number):
        self.acknowledged = number

    def after_power_loss(self, random):
        """Return a directory tree that the disk could hold after a power loss."""
        luck = random.choice((0.0, 0.5, 0.9, 1.0))
        return self._survivors(self.root, random, luck)

    def _survivors(self, node, random, luck):
        if isinstance(node, File):
            return lose(node, random, luck)
        entries = dict(node.durable)
        for change in node.pending:
            if random.random() < luck:
                apply(entries, change)
        return {
            name: self._survivors(child, random, luck) for name, child in sorted(entries.items())
        }

    def _parent(self, name):
        path = Path(name)
        return self._find(str(path.parent)), path.name

    def _find(self, name):
        node = self.root
        for part in Path(name).parts:
            node = node.entries[part]
        return node


def lose(file, random, luck):
    """Return the content that the disk could hold of a file."""
    if file.content == file.durable or random.random() < luck * luck:
        return file.content
    kept, new = file.durable, file.content[len(file.durable) :]
    fate = random.choice(("missing", "zeroed", "halved"))
    if fate == "missing":
        return kept
    return kept + (bytes(len(new)) if fate == "zeroed" else new[: len(new) // 2])


def read_tree(path):
    """Return a directory of the disk, completely flushed."""
    entries = {
        child.name: read_tree(child) if child.is_dir() else _confirmed(child.read_bytes())
        for child in path.iterdir()
        if child.name != ".brain.lock"
    }
    return Directory(durable=dict(entries), entries=entries)


def write_tree(tree, path):
    """Write a directory tree."""
    path.mkdir()
    for name, content in tree.items():
        if isinstance(content, dict):
            write_tree(content, path / name)
        else:
            (path / name).write_bytes(content)


def fingerprint(tree):
    """Return a digest of a directory tree."""
    return hashlib.sha256(repr(tree).encode()).digest()


def _confirmed(content):
    return File(durable=content, content=content)
