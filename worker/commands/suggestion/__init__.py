"""What `logmamba init` makes of a sample: its shape, its times, its session keys, and the settings file of it all."""
