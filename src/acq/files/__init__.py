"""Files from outside, read within limits: settings, tensors, images and ONNX files; and atomic writes."""
