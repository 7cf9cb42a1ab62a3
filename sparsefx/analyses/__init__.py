"""What a trained model and its history tell: class specialisation, layer densities."""
