"""What the stages that train share: options, checkpoints, interruption, several processes, and the run itself."""
