"""report.html and training_curves.png from what a run left on disk. Torch-free."""
