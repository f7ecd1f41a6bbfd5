"""How a pipeline's tasks are placed: one module per platform, each with a `place` for `build(place)`."""
