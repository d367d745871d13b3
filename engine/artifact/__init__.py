"""The artifact: a directory with everything that serving needs, described by a manifest.

    manifest.json, tokenizer.json, chat_template.jinja (if any), golden.jsonl, and for each
    precision a graph and its weights: model.onnx and model.onnx.data (fp32), model.int8.onnx and
    model.int8.onnx.data (int8), and so on

`kwise.export` writes artifacts through the same `Manifest` that the engine reads.
"""
