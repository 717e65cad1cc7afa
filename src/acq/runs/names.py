"""Names of the files in a run folder."""

from __future__ import annotations

CONFIG, METRICS, SUMMARY, SAMPLES = "config.yaml", "metrics.jsonl", "summary.json", "samples"
DIAGNOSTICS, REPORT, TENSORBOARD, LATENCY = "diagnostics.json", "report.html", "tensorboard", "latency.json"
STUDENT, QUANTIZATION, MODEL = "student.safetensors", "quantization.json", "model.onnx"
TAIL = "tail.onnx"  # what an ONNX file has behind the network's outputs
CHECKPOINT = "checkpoint"
STATE = f"{CHECKPOINT}/state.pt"
CONTENTS = (
    CONFIG, METRICS, SUMMARY, SAMPLES, DIAGNOSTICS, REPORT, TENSORBOARD, LATENCY, STUDENT, QUANTIZATION, MODEL,
    TAIL, CHECKPOINT,
)  # fmt: skip
