"""The protocol of Text Embeddings Inference (`tei.v1`) on top of `RewardService`."""
