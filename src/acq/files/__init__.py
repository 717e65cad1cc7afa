"""Files from outside: size limits, tensor files, images and ONNX screening."""
