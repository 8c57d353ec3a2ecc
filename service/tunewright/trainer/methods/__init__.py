"""OpenAI's training methods, one module each, which makes the trainer. `trainer.run` picks one by the spec."""
