"""The command ``brain-move``: SpeechBrain's names in a recipe become those of these packages."""
