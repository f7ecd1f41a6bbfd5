"""What earns a reward: a reward model, functions of the user's own, and their weighted sum."""
