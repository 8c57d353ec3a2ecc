"""OpenAI's training methods, one module each. `trainer.run` picks one by the spec."""
