"""The loop of proximal policy optimisation: ppo_trainer is it, and grpo_trainer trains encoder-decoders by it."""
