"""What quantization does to a model: which layers suffer from it, and what each gains."""
