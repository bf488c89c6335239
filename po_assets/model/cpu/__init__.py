"""What is hand-made for the speed of a CPU: the training path and the decoding path."""
