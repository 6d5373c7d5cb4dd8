"""Training and fine-tuning of SAM 2 models: `python -m training.train configs/training/nano_cpu.yaml --output DIR`."""
