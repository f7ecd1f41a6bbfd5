"""The images that stages run in: how they are locked, built, pushed and listed."""
