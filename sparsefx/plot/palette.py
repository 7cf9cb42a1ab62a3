"""The colours of channels, apart also for the colour-blind and in print."""

KEPT = "#2f6db0"
MOVED = "#e8912d"  # gathered or scattered
REMOVED = "#d4d4d4"
NEW = "#3f9a73"
