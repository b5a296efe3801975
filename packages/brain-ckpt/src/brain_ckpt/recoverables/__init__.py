"""Objects to save and restore, and how their states are read and written."""
