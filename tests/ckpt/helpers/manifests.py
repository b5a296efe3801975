"""Edit the files of a checkpoint as an attacker can, with matching checksums."""

import json
import zlib


def sign(path, change):
    """Edit a manifest and update its checksum."""
    file = path / "MANIFEST.json"
    fields = json.loads(file.read_text())
    change(fields)
    fields.pop("crc32")
    body = json.dumps(fields, indent=1)
    file.write_text(f'{body[:-2]},\n "crc32": "{zlib.crc32(body.encode()):08x}"\n}}\n')


def refit(path, name):
    """Update the entry of a changed file in the manifest."""
    content = (path / name).read_bytes()
    entry = {"size": len(content), "chunks": [f"{zlib.crc32(content):08x}"]}
    sign(path, lambda fields: fields["files"].update({name: entry}))
