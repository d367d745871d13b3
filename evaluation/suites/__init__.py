"""Public benchmarks of reward models: their files, their categories and their own scores."""
