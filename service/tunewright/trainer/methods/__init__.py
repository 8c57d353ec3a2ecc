"""The training methods, a module each. `trainer.run` picks one by the spec."""
