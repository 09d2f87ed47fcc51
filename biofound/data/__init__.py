"""From recordings to windows on disk: sources, splits, conditioning, quality and the window store."""
