"""What a worker tells about itself: log, metrics, status. It knows plain numbers and texts."""
