"""weights → device: ONNX, int8, latency, and the ways in from and out to other toolkits."""
