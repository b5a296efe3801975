"""Make clips of spoken digits, with formants instead of recordings, and their JSON manifests."""

from __future__ import annotations

import itertools
import json
import logging
import wave
from pathlib import Path

import numpy as np

RATE = 8000  # samples a second
SEED = 7
PITCHES = {"train": (90, 260), "valid": (80, 280), "test": (80, 280)}  # of the speakers, in Hz
# The first two formants of five vowels, in Hz. Each digit glides from one vowel to another.
VOWELS = {"a": (750, 1250), "e": (450, 1900), "i": (280, 2250), "o": (480, 850), "u": (310, 700)}
DIGITS = [(VOWELS[a], VOWELS[b]) for a, b in itertools.combinations(VOWELS, 2)]

logger = logging.getLogger(__name__)


def prepare_digits(folder: str, train_clips: int, held_out_clips: int) -> None:
    """Write clips and train.json, valid.json and test.json into ``folder``, unless they exist.

    Each clip is of another speaker: pitch, length of the vocal tract, pace and noise are drawn.

    Parameters
    ----------
    folder : str
        Where to write.
    train_clips : int
        The number of clips to train on.
    held_out_clips : int
        The number of clips for validation, and for the test.
    """
    settings = f"{train_clips} clips to train on, {held_out_clips} held out\n"
    done = Path(folder, "prepared.txt")  # written last: a run that is killed before prepares again
    if done.exists() and done.read_text(encoding="utf-8") == settings:
        logger.info("The clips exist already: %s", settings.strip())
        return
    for part, count in {
        "train": train_clips,
        "valid": held_out_clips,
        "test": held_out_clips,
    }.items():
        Path(folder, "clips", part).mkdir(parents=True, exist_ok=True)
        rows = {}
        for index in range(count):
            rng = np.random.default_rng([SEED, list(PITCHES).index(part), index])
            digits = rng.integers(10, size=rng.integers(3, 8)).tolist()
            clip = speak(digits, rng, PITCHES[part])
            name = f"clips/{part}/{index:05}.wav"
            write_wav(Path(folder, name), clip)
            rows[f"{part}-{index:05}"] = {
                "wav": f"{{folder}}/{name}",
                "digits": " ".join(map(str, digits)),
                "duration": len(clip) / RATE,
            }
        Path(folder, f"{part}.json").write_text(json.dumps(rows), encoding="utf-8")
        logger.info("%s.json: %d clips", part, count)
    done.write_text(settings, encoding="utf-8")


def speak(digits, rng, pitches):
    """Return a clip (samples,) of one speaker who says digits, with noise."""
    pitch, tract, pace = rng.uniform(*pitches), rng.uniform(0.85, 1.2), rng.uniform(0.8, 1.3)
    parts = [np.zeros(int(RATE * rng.uniform(0.05, 0.2)))]
    for digit in digits:
        seconds = pace * rng.uniform(0.1, 0.2)
        parts.append(voice(*DIGITS[digit], seconds, pitch * rng.uniform(0.9, 1.1), tract))
        parts.append(np.zeros(int(RATE * pace * rng.uniform(0.02, 0.12))))
    clip = np.concatenate(parts)
    clip /= np.abs(clip).max()
    return clip + rng.uniform(0.01, 0.1) * rng.standard_normal(len(clip))


def voice(first, last, seconds, pitch, tract):
    """Return a voice (samples,) whose formants glide from those of one vowel to another's."""
    place = np.linspace(0, 1, int(RATE * seconds))
    phase = 2 * np.pi * np.cumsum(pitch * (1.1 - 0.2 * place)) / RATE  # the pitch falls
    harmonics = np.arange(1, int(0.45 * RATE / pitch))[:, None]
    gains = 0.02 / harmonics
    for start, end in zip(first, last, strict=True):  # a formant is a resonance 90 Hz wide
        formant = tract * (start + (end - start) * place)
        gains = gains + 1 / harmonics / (1 + ((harmonics * pitch - formant) / 90) ** 2)
    return (gains * np.sin(harmonics * phase)).sum(0) * np.sin(np.pi * place) ** 0.5


def write_wav(path, clip):
    """Write a clip (samples,) as 16-bit PCM; what is louder than 1 is clipped."""
    samples = (clip.clip(-1, 1) * 0.9 * 32767).astype("<i2")
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes(samples.tobytes())


def read_wav(path):
    """Return the samples (samples,) of a file, as floats in [-1, 1)."""
    with wave.open(path, "rb") as file:
        samples = np.frombuffer(file.readframes(file.getnframes()), dtype="<i2")
    return samples.astype(np.float32) / 32768
