"""The pipelines, and how their tasks are placed on each platform."""

# Each is a module here whose `build(place)` defines the pipeline.
PIPELINES = ("rlhf", "rft")
